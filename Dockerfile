# One image for operator, shard and command line. The wheels are made outside (`make wheels`), so that this builds the
# same with and without a network; those of the lock file are checked against its hashes once more.
FROM python:3.11-slim AS build
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

FROM python:3.11-slim
COPY --from=build /opt/fencekv /opt/fencekv
ENV PATH=/opt/fencekv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
RUN install -d -o 65532 -g 65532 /data
USER 65532:65532
VOLUME /data
CMD ["fencekv-shard"]
