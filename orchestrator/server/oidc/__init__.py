"""Single sign-on with a provider that speaks OpenID Connect."""
