"""What a run wrote, byte by byte."""


def tree(folder):
    """Every file below a local folder: its path in it, and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys(options, folder):
    """Every key below a folder of a bucket, as `tree` tells files."""
    import s3fs

    fs = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    return {path.removeprefix(f"{folder}/"): fs.cat_file(path) for path in fs.find(folder)}
