//! The stand-in in a [`ServerChild`](crate::server_child::ServerChild).

use super::{GoogleFront, Protection};

/// The key that it has.
pub const KEY: &str =
    "projects/orders-prod/locations/europe-west1/keyRings/services/cryptoKeys/child";

/// To be called by a test of this name and nothing else in every binary that starts such a child.
pub fn child_s_part() {
    crate::server_child::serve_as_child(|| {
        let front = GoogleFront::start();
        assert_eq!(front.create_key("child", Protection::Software), KEY);
        let url = front.url();
        (front, url)
    });
}
