# One image per service, each with only what its extra brings:
#   docker build --build-arg SERVICE=storage -t twinmesh-storage:0.1.0 .
# training takes torch's default build, which carries CUDA; for CPUs name another index:
#   docker build --build-arg SERVICE=training --build-arg PIP_EXTRA_INDEX_URL=... -t twinmesh-training:0.1.0 .
FROM python:3.11-slim AS build
ARG SERVICE
ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY libs libs
COPY services services
RUN test -n "$SERVICE" || { echo "say --build-arg SERVICE=ingestion|storage|statesync|training|inference" >&2; exit 1; } \
    && python -m venv /opt/twinmesh \
    && /opt/twinmesh/bin/pip install --no-cache-dir --no-input -c constraints.txt ".[$SERVICE]" \
    && /opt/twinmesh/bin/python -m compileall -q /opt/twinmesh/lib

FROM python:3.11-slim
ARG SERVICE
# MALLOC_*: batches of some MB come and go; without these glibc gives their pages back and faults them in each time.
ENV TWINMESH_SERVICE=${SERVICE} \
    PATH=/opt/twinmesh/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_MMAP_THRESHOLD_=268435456 \
    MALLOC_TRIM_THRESHOLD_=268435456 \
    MALLOC_ARENA_MAX=2
LABEL org.opencontainers.image.title="twinmesh-${SERVICE}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/twinmesh /opt/twinmesh
# A new volume takes over the owner of the directory it is mounted on.
RUN groupadd --gid 10001 twinmesh \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin twinmesh \
    && install -d -o 10001 -g 10001 /var/lib/twinmesh /var/lib/twinmesh/artifacts /var/lib/twinmesh/models
USER 10001:10001
WORKDIR /var/lib/twinmesh
# exec: the service itself gets SIGTERM, and drains.
ENTRYPOINT ["/bin/sh", "-c", "exec python -m \"twinmesh_${TWINMESH_SERVICE}\" \"$@\"", "twinmesh"]
