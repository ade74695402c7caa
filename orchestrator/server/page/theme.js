// Sets the chosen theme before the page is painted; without a choice, the system's applies.
"use strict";
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("babysit-theme");
  } catch {
    // Storage may be forbidden: then each page starts with the system's theme.
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
