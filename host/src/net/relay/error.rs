//! Why a connection is not carried.

use crate::agent::LoanError;
use magikvm_proto::stream::Violation;
use magikvm_proto::wire::Refusal;
use std::io;

/// Why a connection was reset.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Nobody listens behind the VMM's socket yet or any more.
    #[error("the pod cannot be reached")]
    Unreachable(#[source] io::Error),
    /// The monitor did not lend a connection.
    #[error(transparent)]
    Loan(#[from] LoanError),
    /// The guest did not answer in time.
    #[error("the pod did not answer in time")]
    Timeout,
    /// The guest refused, usually because nothing listens there.
    #[error(transparent)]
    Refused(Refusal),
    /// The guest closed the connection instead of answering.
    #[error("the pod closed the connection instead of answering")]
    Closed,
    /// The guest's answer is invalid.
    #[error("the pod sent something that is not an answer")]
    Nonsense,
    /// The guest violated the framing.
    #[error("the pod violated the protocol of forwarded connections")]
    Violation(#[source] Violation),
    /// The guest disappeared in the middle.
    #[error("the connection to the pod broke off")]
    Cut,
}
