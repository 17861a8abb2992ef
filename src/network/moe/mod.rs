//! A mixture of experts: a router assigns tokens to experts, tokens are gathered by expert, expert outputs are added back.

pub(super) mod assignment;
pub(super) mod dispatch;
pub(super) mod grouping;
pub(super) mod mixture;
pub(super) mod router;
