"""The storage backends, one contract for all: S3, GCS, a folder."""
