//! Octets that wait, and nothing at all where none do.

/// Octets in their order. Memory is held only while there are some.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    taken: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The first `count` are no longer needed.
    pub(super) fn take(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.bytes.len());
        if self.is_empty() {
            *self = Self::default();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl From<Vec<u8>> for Backlog {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, taken: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_gone_and_memory_with_the_last_of_it() {
        let mut backlog = Backlog::from(b"one".to_vec());
        backlog.push(b"two");
        backlog.take(4);
        assert_eq!((backlog.rest(), backlog.len(), backlog.is_empty()), (&b"wo"[..], 2, false));
        backlog.take(9);
        assert_eq!((backlog.rest(), backlog.is_empty(), backlog.bytes.capacity()), (&b""[..], true, 0));
    }
}
