# One image for operator, shard and command line. The wheels are made outside (`make wheels`), so that this builds the
# same with and without a network; those of the lock file are checked against its hashes once more.
# BASE may name a digest (python:3.11-slim@sha256:...); without a network it is whatever that tag is here.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
RUN python -m venv --without-pip /opt/fencekv
COPY requirements.lock /
COPY build/wheels/locked /wheels/locked
RUN python -m pip --python /opt/fencekv/bin/python install --quiet --disable-pip-version-check --root-user-action ignore \
      --no-index --no-compile --find-links /wheels/locked --require-hashes --requirement /requirements.lock
COPY build/wheels/own /wheels/own
# Compiled here, because the root is read-only later: a start that compiles takes four times as long. The hash in
# place of a time makes two builds of the same sources alike.
RUN python -m pip --python /opt/fencekv/bin/python install --quiet --disable-pip-version-check --root-user-action ignore \
      --no-index --no-compile --no-deps /wheels/own/*.whl \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/fencekv/lib
# What was compiled elsewhere runs on this base, or the build ends here: `make wheels COMPILED=false` then.
RUN /opt/fencekv/bin/python -c "import fencekv_shard.serve"

FROM ${BASE}
COPY --from=build /opt/fencekv /opt/fencekv
# Where volumes are mounted. Nothing else is written to: the root may be read-only.
RUN install -d -o 65532 -g 65532 /data
ENV PATH=/opt/fencekv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 65532:65532
VOLUME /data
# No shell from here on: the command is run as it stands, and so are those of the manifests.
CMD ["fencekv-shard"]
# Last, so that a new commit alone builds nothing anew.
ARG VERSION=unknown
ARG COMMIT=unknown
ENV FENCEKV_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title=fencekv \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${COMMIT}
