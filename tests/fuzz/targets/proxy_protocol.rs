//! Whatever a trusted proxy sends in front of a connection is read as a header, waited for, or refused: never beyond its
//! end, never differently for arriving in pieces, and what was read can be written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh::proxy::proxy_protocol::{LONGEST, read, write};
use nerve::model::ProxyVersion;

fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes);
    let Ok(Some(header)) = whole else {
        // What is refused stays refused, whatever follows.
        if whole.is_err() {
            assert_eq!(read(&[bytes, b"\r\n more"].concat()), whole);
        }
        return;
    };
    assert!(header.length <= bytes.len().min(LONGEST));
    assert_eq!(read(&bytes[..header.length]), whole, "what follows is not looked at");
    for length in 0..header.length {
        assert_eq!(read(&bytes[..length]), Ok(None), "after {length} bytes");
    }
    if let Some(addresses) = header.addresses {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let written = write(version, addresses);
            let again = read(&written).expect("well-formed").expect("complete");
            assert_eq!((again.length, again.addresses), (written.len(), Some(addresses)));
        }
    }
});
