//! A Service's annotations as settings of a service.

use super::document::ServiceTable;
use super::identity::Said;

/// What the annotations of one Service say.
#[derive(Debug)]
pub(super) struct Annotations {
    pub(super) table: ServiceTable,
    pub(super) identity: Said,
}
