# docker build -t inkzarr .
# docker run --rm -v "$PWD":/data inkzarr info scan.zarr
FROM python:3.11-slim
WORKDIR /opt/inkzarr
COPY requirements.txt ./
# all that comes over the network has the hash that requirements.txt tells; what must be built is built with
# the image's own tools
RUN pip install --no-cache-dir --no-build-isolation --require-hashes --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY inkzarr ./inkzarr
RUN pip install --no-cache-dir --no-build-isolation --no-index --no-deps .
RUN useradd --create-home scroll
USER scroll
WORKDIR /data
ENTRYPOINT ["inkzarr"]
