# One image for operator and shard. The wheels are built outside, from the lock file with hashes (`make wheels`),
# so that this builds the same with and without a network.
FROM python:3.11-slim AS build
COPY build/wheels /wheels
RUN python -m venv /opt/fencekv \
 && /opt/fencekv/bin/pip install --quiet --no-index --no-compile --find-links /wheels fencekv

FROM python:3.11-slim
COPY --from=build /opt/fencekv /opt/fencekv
ENV PATH=/opt/fencekv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
RUN install -d -o 65532 -g 65532 /data
USER 65532:65532
VOLUME /data
CMD ["fencekv-shard"]
