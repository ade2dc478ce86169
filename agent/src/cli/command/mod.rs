//! One module a verb (or a pair of verbs): ask the library, print the answer.

pub(super) mod agent;
pub(super) mod check;
pub(super) mod detect;
pub(super) mod export;
pub(super) mod images;
pub(super) mod inspect;
pub(super) mod prune;
pub(super) mod pull;
pub(super) mod release;
pub(super) mod repair;
mod row;
pub(super) mod smoke;
pub(super) mod status;
mod told;
mod verdict;
pub(super) mod verify;
pub(super) mod wait;
