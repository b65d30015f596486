"""The storage backends, with one contract for all: S3, GCS, Azure, a folder."""
