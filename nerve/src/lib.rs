//! Nerve: what runs on this node, is it well, and telling the store so.
//!
//! Read the modules in the order in which data flows through them:
//! [`model`] is the vocabulary everyone shares, [`store`] the key-value store behind one trait,
//! [`check`] the probes, [`source`] where the definitions come from, [`registrar`] the loop that keeps the store
//! equal to what is well here, [`announce`] what other systems are told of that, [`settings`] and [`publish`] what an operator
//! changes of a service, [`vips`] the claims on virtual addresses, [`networks`] and [`subnets`] the overlay networks and who
//! holds which part of them, [`rules`] who may talk to whom, [`enrolment`] who may prove to be which node. [`document`] reads configuration text, [`smartstack`] what SmartStack's two halves have of it in common; [`http`] speaks
//! with other programs; [`tasks`] owns what runs in the background; [`watched`] tells that files have changed; [`hash`] is
//! the same for everyone.

pub mod announce;
pub mod check;
pub mod document;
pub mod enrolment;
pub mod hash;
pub mod http;
pub mod model;
pub mod networks;
pub mod period;
pub mod publish;
pub mod registrar;
pub mod rules;
pub mod settings;
pub mod smartstack;
pub mod source;
pub mod store;
pub mod subnets;
pub mod tasks;
pub mod vips;
pub mod watched;
