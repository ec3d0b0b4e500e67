# f3rm, COLMAP and ffmpeg on a CPU, from a checkout:
#   docker build -f docker/cpu.Dockerfile -t f3rm .
#   docker run --rm -it -v "$PWD:/work" f3rm f3rm make-scene tabletop --out datasets/tabletop
FROM python:3.11-slim-bookworm
# Two packages that Nerfstudio needs, fpsample and pyliblzfse, are compiled, hence g++.
# A distribution keeps one version of a package only, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        colmap ffmpeg g++ git libegl1 libgl1 libglib2.0-0 libgomp1 libusb-1.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE /f3rm/
COPY f3rm /f3rm/f3rm
RUN pip install --no-cache-dir -c /f3rm/constraints.txt "/f3rm[fast]"
ENV OMP_NUM_THREADS=1
WORKDIR /work
CMD ["f3rm", "doctor"]
