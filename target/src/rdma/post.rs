//! Work of a connection becomes a work request of its queue pair.

use homi_fabric::rdma::{Operation, Span, Work};
use homi_verbs::{Piece, PostError, Remote, SendBatch, Signal, VerbsError};

use super::registry::Registry;
use crate::arena::Arena;

/// Puts one work request into the list.
#[inline]
pub(super) fn push(
    batch: &mut SendBatch<'_>,
    work: &Work<'_>,
    registry: &mut Registry,
    arena: &Arena,
) -> Result<(), String> {
    let signal = if work.signaled {
        Signal::Completion
    } else {
        Signal::Silent
    };
    let token = u64::from(work.id.0);
    let pushed: Result<(), PostError> = match &work.operation {
        Operation::Send(capsule) => batch.send_inline(capsule.entry, capsule.invalidate, signal, token),
        Operation::Write { remote, local } => {
            let pieces = pieces(local, registry, arena).map_err(|error| error.to_string())?;
            let remote = Remote {
                address: remote.address,
                key: remote.key,
            };
            batch.write(pieces.into_iter().flatten(), remote, signal, token)
        }
        Operation::Read { remote, local } => {
            let pieces = pieces(local, registry, arena).map_err(|error| error.to_string())?;
            let remote = Remote {
                address: remote.address,
                key: remote.key,
            };
            batch.read(pieces.into_iter().flatten(), remote, signal, token)
        }
    };
    pushed.map_err(|error| error.to_string())
}

#[inline]
fn pieces(
    local: &Span<'_>,
    registry: &mut Registry,
    arena: &Arena,
) -> Result<[Option<Piece>; 2], VerbsError> {
    let mut pieces = [None, None];
    for (place, span) in pieces.iter_mut().zip(local.pieces()) {
        *place = Some(registry.piece(&span, arena)?);
    }
    Ok(pieces)
}
