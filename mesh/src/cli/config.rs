//! `plexus config check FILE`: is the configuration right, and what does it mean?
