//! demo
mod netns;
mod network;
