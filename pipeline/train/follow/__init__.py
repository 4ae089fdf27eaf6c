"""Training that begins while its cache is still being filled.

Read `arrivals` (which stores are there, and the rounds that say when they came), `pace` (how many
steps they allow, and which windows come next), then `windows` (both splits, as they grow).
"""
