# docker build -t inkzarr .
# docker run --rm -v "$PWD":/data inkzarr info scan.zarr
FROM python:3.11-slim
WORKDIR /opt/inkzarr
COPY constraints.txt ./
# torch comes first and alone: for a GPU, take the build that PyTorch's own page names
RUN pip install --no-cache-dir --constraint constraints.txt torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY inkzarr ./inkzarr
RUN pip install --no-cache-dir --constraint constraints.txt ".[all]"
RUN useradd --create-home scroll
USER scroll
WORKDIR /data
ENTRYPOINT ["inkzarr"]
