//! Wire types of NVMe base, the NVM command set, NVMe over Fabrics, and the TCP and RDMA bindings.
#![no_std]
#![forbid(unsafe_code)]

mod macros;

pub mod admin;
pub mod command;
pub mod controller;
pub mod event;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log;
pub mod nqn;
pub mod nvm;
pub mod rdma;
pub mod sgl;
pub mod status;
pub mod tcp;
pub mod text;

pub use command::{Cqe, Sqe};
pub use nqn::Nqn;
pub use sgl::{Sgl, SglDescriptor};
pub use status::Status;
/// The little-endian, alignment-free integers that the wire types are made of.
pub use zerocopy::little_endian::{U16, U32, U64, U128};
