# The control plane of babysit: docker build --tag registry.example.org/babysit:0.1.0 .
#
# STORAGE names packages for the storage of checkpoints and bundles, such as "s3fs gcsfs":
# docker build --build-arg STORAGE=s3fs --tag …

FROM python:3.12-slim-bookworm AS build
ARG STORAGE=""
WORKDIR /src
COPY . .
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check \
      ".[server,kubernetes,slack,grafana,oidc,nvidia]" ${STORAGE}

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --user-group --create-home --home-dir /var/lib/babysit babysit
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 BABYSIT_HOME=/var/lib/babysit/home
USER 10001:10001
WORKDIR /var/lib/babysit
EXPOSE 8443
ENTRYPOINT ["babysit"]
CMD ["server"]
