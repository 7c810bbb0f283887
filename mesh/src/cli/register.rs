//! `plexus register SVC`: checks an instance on this node and registers it, without a file.
