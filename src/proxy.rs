//! The data path: accept, dial, relay. A connection is told all it needs by its [`Route`]; no
//! configuration and no credential store reaches in here.
//!
//! Read in the order of a connection's life: [`listener`], [`accept`], [`connection`], [`connect`],
//! [`relay`], [`outcome`].
//!
//! [`Route`]: crate::route::Route

mod accept;
pub(crate) mod caller;
pub(crate) mod connect;
mod connection;
pub(crate) mod handshake;
pub(crate) mod listener;
pub(crate) mod outcome;
pub(crate) mod relay;
pub(crate) mod resolve;
pub(crate) mod scratch;
pub(crate) mod session;
