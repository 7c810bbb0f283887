//! End-to-end tests: several real nodes, a real store, the program as it ships, driven from outside.
//!
//! One module a subject; a test's name is what holds. `harness` tests what the others stand on.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin_access;
mod admin_socket;
mod attached_services;
mod attachments;
mod balance;
mod check_programs;
mod checks;
mod cli;
mod cni;
mod cni_services;
mod consul;
mod consul_reads;
mod demo;
mod direct;
mod discover;
mod dns;
mod dns_clients;
mod dns_conformance;
mod dns_encrypted;
mod dns_forward;
mod dns_link_local;
mod dns_names;
mod docker;
mod docker_mesh;
mod docker_services;
mod doctor;
mod exhaustion;
mod faults;
mod guest;
mod handover;
mod haproxy_output;
mod harness;
mod health;
mod identity;
mod identity_rotation;
mod ingress;
mod mistakes;
mod mtls;
mod network;
mod outage;
mod outliers;
mod output;
mod overlay;
mod overlay_clients;
mod overlay_encrypted;
mod overlay_fast_path;
mod overlay_nodes;
mod overlay_traffic;
mod podman;
mod reload;
mod rules;
mod settings;
mod smartstack;
mod synapse_conf;
mod transparent;
mod udp;
mod unix;
mod vip;
mod watched_apis;
mod watched_places;
mod watched_swarm;
mod watchers;
mod zookeeper;

/// The port that instances of `web` listen on.
const INSTANCE: u16 = 9000;
/// The port that `web` is published on.
const PUBLISHED: u16 = 8080;
