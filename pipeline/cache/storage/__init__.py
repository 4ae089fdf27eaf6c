"""Storages, in which the files of a cache lie: a folder of a file system, or an object store.

Read `contract` first, then `open` (an address becomes a storage), `local` and `object_store`;
`retry` and `disk_cache` stand between an object store and its readers.
"""
