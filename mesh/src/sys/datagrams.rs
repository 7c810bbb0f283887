//! Many datagrams a system call: `recvmmsg(2)` and `sendmmsg(2)` with control messages.
//!
//! rustix has no control messages for addresses and segment sizes, and nix sends one set of them with all datagrams of a call;
//! so the two calls are made here. What the kernel is told of lives on the stack of one function. The raw system call instead of
//! the C library's function: musl's `sendmmsg` is a loop of `sendmsg`.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use rustix::io::Errno;

use super::control::{Control, Local, Name};

/// Datagrams of one call. More of them save little (a call is some 200 ns, a datagram through the kernel 1 µs and more) and make the
/// thread's other sockets wait.
pub(crate) const BATCH: usize = 64;

/// The largest datagram, or run of datagrams that the kernel received as one, is 65,535 bytes with its headers.
pub(crate) const LARGEST: usize = 65_536;
/// Three cache lines more than the room, so that the beginnings of the buffers do not compete for the same lines of the caches.
const APART: usize = 192;

/// Buffers for a batch of datagrams, and what is known of those that are in them.
#[derive(Debug)]
pub(crate) struct Datagrams {
    bytes: Box<[u8]>,
    /// Of each.
    room: usize,
    heads: Vec<Head>,
}

/// A datagram, or several in a row from one sender that the kernel has put together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// Who sent it; `None` where the socket is connected or the family unknown.
    pub(crate) from: Option<SocketAddr>,
    /// Which of our addresses it came to, where the socket tells.
    pub(crate) to: Option<Local>,
    /// Bytes in all.
    pub(crate) length: usize,
    /// Bytes of each datagram but the last.
    pub(crate) segment: usize,
    /// It was longer than its buffer.
    pub(crate) truncated: bool,
    /// How many the socket could not hold since it was opened, where the socket counts them.
    pub(crate) missed: Option<u32>,
}

/// A datagram to be sent, or several equally long ones of which the last may be shorter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    /// To whom; `None` where the socket is connected.
    pub(crate) to: Option<SocketAddr>,
    /// From which of our addresses; `None`: the kernel chooses.
    pub(crate) from: Option<Local>,
    /// Its bytes, put together from these.
    pub(crate) pieces: &'a [IoSlice<'a>],
    /// Bytes of each datagram where it is several.
    pub(crate) segment: Option<u16>,
}

impl Datagrams {
    /// Empty buffers for datagrams of so many bytes; longer ones are cut short. Memory is taken where they are used: a small one takes a
    /// page of a large room.
    pub(crate) fn new(room: usize) -> Self {
        let bytes = vec![0; BATCH * (room + APART)].into_boxed_slice();
        Self { bytes, room, heads: Vec::with_capacity(BATCH) }
    }

    /// Forgets what is in them.
    pub(crate) fn clear(&mut self) {
        self.heads.clear();
    }

    /// How many are in them.
    pub(crate) fn len(&self) -> usize {
        self.heads.len()
    }

    /// How many more would fit.
    pub(crate) fn room(&self) -> usize {
        BATCH - self.heads.len()
    }

    /// What is known of the one at `index`.
    pub(crate) fn head(&self, index: usize) -> &Head {
        &self.heads[index]
    }

    /// The bytes of the one at `index`.
    pub(crate) fn bytes(&self, index: usize) -> &[u8] {
        &self.bytes[index * (self.room + APART)..][..self.heads[index].length]
    }

    /// Receives what waits, at most `limit` datagrams and what fits, behind those that are there. Tells how many came; fewer than
    /// asked for means that no more waited. Does not block.
    pub(crate) fn receive(&mut self, socket: impl AsFd, limit: usize) -> Result<usize, Errno> {
        let limit = limit.min(self.room());
        let mut names = [const { MaybeUninit::<Name>::uninit() }; BATCH];
        let mut controls = [const { MaybeUninit::<Control>::uninit() }; BATCH];
        let mut slices = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
        let (room, apart) = (self.room, self.room + APART);
        let buffers = self.bytes[self.heads.len() * apart..].chunks_exact_mut(apart);
        for (index, buffer) in buffers.take(limit).enumerate() {
            let slice =
                slices[index].write(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: room });
            let name = names[index].write(Name::EMPTY);
            let control = controls[index].write(Control::EMPTY);
            let header = headers[index].write(empty_header());
            header.msg_hdr.msg_name = name.0.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = length(Name::ROOM);
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = length(control.bytes.len());
        }
        // SAFETY: the first `limit` headers are initialised. Their pointers are to names, controls, slices and buffers that live
        // through the call, are borrowed by nobody else and are as long as the headers say. The descriptor is open while it is
        // borrowed. Without a timeout the last argument is null.
        let result = unsafe {
            libc::syscall(
                libc::SYS_recvmmsg,
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                limit,
                libc::MSG_DONTWAIT,
                ptr::null_mut::<libc::timespec>(),
            )
        };
        let received = usize::try_from(result).map_err(|_| last_error())?.min(limit);
        for index in 0..received {
            // SAFETY: all three of this index were initialised above, since it is less than `limit`; the kernel wrote plain
            // numbers and bytes into them.
            let (header, name, control) = unsafe {
                (
                    headers[index].assume_init_ref(),
                    names[index].assume_init_ref(),
                    controls[index].assume_init_mut(),
                )
            };
            self.heads.push(head(header, name, control, room));
        }
        Ok(received)
    }
}

#[allow(clippy::unnecessary_cast, reason = "its type differs between the C libraries")]
fn head(header: &libc::mmsghdr, name: &Name, control: &mut Control, room: usize) -> Head {
    control.used = header.msg_hdr.msg_controllen as usize;
    let said = control.said();
    let length = (header.msg_len as usize).min(room);
    Head {
        from: if header.msg_hdr.msg_namelen > 0 { name.address() } else { None },
        to: said.to,
        length,
        segment: said.segment.filter(|size| *size > 0).unwrap_or(length),
        truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        missed: said.missed,
    }
}

/// Sends as many of the first [`BATCH`] messages as the socket takes, in order, and tells how many; an error is that of the first.
pub(crate) fn send(socket: impl AsFd, messages: &[Outgoing<'_>]) -> Result<usize, Errno> {
    let count = messages.len().min(BATCH);
    let mut names = [const { MaybeUninit::<Name>::uninit() }; BATCH];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; BATCH];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
    for (index, message) in messages.iter().take(count).enumerate() {
        let header = &mut headers[index].write(empty_header()).msg_hdr;
        // An `IoSlice` is an `iovec` (its documentation guarantees it); the kernel does not write through it.
        header.msg_iov = message.pieces.as_ptr().cast_mut().cast();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            clippy::unnecessary_cast,
            trivial_numeric_casts,
            reason = "its type differs between the C libraries; the kernel takes 1,024 at most"
        )]
        {
            header.msg_iovlen = message.pieces.len() as _;
        }
        if let Some(to) = message.to {
            let (name, used) = Name::of(to);
            header.msg_name = names[index].write(name).0.as_mut_ptr().cast();
            header.msg_namelen = length(used);
        }
        if message.from.is_some() || message.segment.is_some() {
            let control = controls[index].write(Control::EMPTY);
            message.from.into_iter().for_each(|from| control.push_source(from));
            message.segment.into_iter().for_each(|size| control.push_segment(size));
            header.msg_controllen = length(control.used);
            header.msg_control = control.bytes.as_mut_ptr().cast();
        }
    }
    // SAFETY: the first `count` headers are initialised. Their pointers are null with length zero, or to names, controls and
    // pieces that live through the call and are as long as the headers say; the kernel only reads them. The descriptor is open
    // while it is borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sendmmsg,
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(result).map_err(|_| last_error())
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: numbers and pointers, for which zero is a value; what pads them must be zero for the kernel.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// A length in whatever type the C library has for it.
fn length<T: TryFrom<usize> + Default>(length: usize) -> T {
    T::try_from(length).unwrap_or_default()
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let [a, b] = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        (a, b)
    }

    #[test]
    fn a_batch_arrives_in_order_with_its_sender() {
        let (a, b) = pair();
        let texts: Vec<String> = (0..10).map(|n| format!("datagram {n}")).collect();
        let slices: Vec<[IoSlice<'_>; 1]> =
            texts.iter().map(|text| [IoSlice::new(text.as_bytes())]).collect();
        let messages: Vec<Outgoing<'_>> =
            slices.iter().map(|pieces| Outgoing { to: None, from: None, pieces, segment: None }).collect();
        assert_eq!(send(&a, &messages), Ok(10));
        let mut received = Datagrams::new(LARGEST);
        assert_eq!(received.receive(&b, 4), Ok(4));
        assert_eq!(received.receive(&b, BATCH), Ok(6));
        assert_eq!(received.receive(&b, BATCH), Err(Errno::AGAIN));
        for (index, text) in texts.iter().enumerate() {
            assert_eq!(received.bytes(index), text.as_bytes());
            assert_eq!(received.head(index).from, a.local_addr().ok());
        }
    }

    #[test]
    fn a_message_of_pieces_leaves_as_datagrams_of_the_segment_size() {
        let (a, b) = pair();
        let pieces = [IoSlice::new(b"abc"), IoSlice::new(b"def"), IoSlice::new(b"g")];
        let message = Outgoing { to: None, from: None, pieces: &pieces, segment: Some(3) };
        assert_eq!(send(&a, &[message]), Ok(1));
        let mut received = Datagrams::new(LARGEST);
        assert_eq!(received.receive(&b, BATCH), Ok(3));
        assert_eq!([0, 1, 2].map(|n| received.bytes(n)), [&b"abc"[..], b"def", b"g"]);
    }
}
