//! Writing programs for the kernel, instruction by instruction, with jumps to labels (pure).
//!
//! Only what the programs here are made of; the numbers are those of the kernel's `Documentation/bpf/standardization/instruction-set.rst`.

use std::io;
use std::os::fd::RawFd;

use crate::sys::bpf::Instruction;

/// A register. R1 to R5 are arguments and lost over a call, R0 is its result, R6 to R9 are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    R0,
    R1,
    R2,
    R3,
    R6 = 6,
    R7 = 7,
    R8 = 8,
    /// The end of the stack, which grows downwards.
    Frame = 10,
}

/// How much is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// When a jump is taken; numbers are compared without a sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum If {
    Equal = 0x10,
    Greater = 0x20,
    /// One of the bits is set.
    Has = 0x40,
    NotEqual = 0x50,
    Less = 0xa0,
    AtMost = 0xb0,
}

/// What the kernel does for a program (bpf-helpers(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Helper {
    MapLookup = 1,
    Redirect = 23,
    PullData = 39,
    ChecksumUpdate = 40,
    RedirectPeer = 155,
}

/// A place in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program as it is written.
#[derive(Debug, Default)]
pub(super) struct Code {
    instructions: Vec<Instruction>,
    /// By label, once they are known.
    places: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const STORE_IMMEDIATE: u8 = 0x62;
const LOAD_DOUBLE: u8 = 0x18;
const ADD: u8 = 0x07;
const AND: u8 = 0x57;
const MOVE: u8 = 0xb7;
/// With another register instead of an immediate.
const BY_REGISTER: u8 = 0x08;
const JUMP: u8 = 0x05;
/// Conditional, of the lower 32 bits.
const JUMP_WORD: u8 = 0x06;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// `BPF_PSEUDO_MAP_FD`.
const MAP: u8 = 1;

impl Code {
    /// A label, whose place is told later.
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Its place is here.
    pub(super) fn place(&mut self, label: Label) {
        self.places[label.0] = Some(self.instructions.len());
    }

    fn add(&mut self, code: u8, to: Register, from: u8, offset: i16, immediate: i32) {
        self.instructions.push(Instruction::new(code, (to as u8, from), offset, immediate));
    }

    pub(super) fn load(&mut self, size: Size, to: Register, (from, at): (Register, i16)) {
        self.add(LOAD | size as u8, to, from as u8, at, 0);
    }

    pub(super) fn store(&mut self, size: Size, (to, at): (Register, i16), from: Register) {
        self.add(STORE | size as u8, to, from as u8, at, 0);
    }

    pub(super) fn store_number(&mut self, size: Size, (to, at): (Register, i16), number: u32) {
        self.add(STORE_IMMEDIATE | size as u8, to, 0, at, number.cast_signed());
    }

    pub(super) fn copy(&mut self, to: Register, from: Register) {
        self.add(MOVE | BY_REGISTER, to, from as u8, 0, 0);
    }

    pub(super) fn set(&mut self, to: Register, number: i32) {
        self.add(MOVE, to, 0, 0, number);
    }

    /// All of 64 bits.
    pub(super) fn set_double(&mut self, to: Register, number: u64) {
        let [lower, upper] = [number, number >> 32].map(|half| (half & 0xffff_ffff) as u32);
        self.add(LOAD_DOUBLE, to, 0, 0, lower.cast_signed());
        self.instructions.push(Instruction::new(0, (0, 0), 0, upper.cast_signed()));
    }

    pub(super) fn set_map(&mut self, to: Register, map: RawFd) {
        self.add(LOAD_DOUBLE, to, MAP, 0, map);
        self.instructions.push(Instruction::new(0, (0, 0), 0, 0));
    }

    pub(super) fn add_number(&mut self, to: Register, number: i32) {
        self.add(ADD, to, 0, 0, number);
    }

    /// Keeps these bits, and of the upper 32 those that the sign says.
    pub(super) fn keep(&mut self, to: Register, bits: u32) {
        self.add(AND, to, 0, 0, bits.cast_signed());
    }

    pub(super) fn keep_those_of(&mut self, to: Register, bits: Register) {
        self.add(AND | BY_REGISTER, to, bits as u8, 0, 0);
    }

    /// Compares 32 bits with a number.
    pub(super) fn jump_if(&mut self, left: Register, condition: If, number: u32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.add(JUMP_WORD | condition as u8, left, 0, 0, number.cast_signed());
    }

    /// Compares 64 bits, or addresses.
    pub(super) fn jump_if_register(&mut self, left: Register, condition: If, right: Register, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.add(JUMP | BY_REGISTER | condition as u8, left, right as u8, 0, 0);
    }

    /// Compares an address with nothing.
    pub(super) fn jump_if_nothing(&mut self, address: Register, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.add(JUMP | If::Equal as u8, address, 0, 0, 0);
    }

    pub(super) fn jump(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.add(JUMP, Register::R0, 0, 0, 0);
    }

    pub(super) fn call(&mut self, helper: Helper) {
        self.add(CALL, Register::R0, 0, 0, helper as i32);
    }

    pub(super) fn exit(&mut self) {
        self.add(EXIT, Register::R0, 0, 0, 0);
    }

    /// The program, with its jumps.
    pub(super) fn finish(mut self) -> io::Result<Vec<Instruction>> {
        for (from, label) in self.jumps {
            let place = self.places.get(label.0).copied().flatten();
            let place = place.ok_or_else(|| io::Error::other("a program jumps to nowhere"))?;
            // From the instruction after the jump.
            let distance = place.wrapping_sub(from + 1).cast_signed();
            let distance = i16::try_from(distance).map_err(io::Error::other)?;
            self.instructions[from] = self.instructions[from].with_offset(distance);
        }
        Ok(self.instructions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_the_places_of_their_labels() {
        let mut code = Code::default();
        let (end, again) = (code.label(), code.label());
        code.place(again);
        code.jump_if(Register::R1, If::NotEqual, 7, end);
        code.set_double(Register::R2, 0x1122_3344_5566_7788);
        code.jump(again);
        code.place(end);
        code.exit();
        let of = |code, to, offset, immediate| Instruction::new(code, (to, 0), offset, immediate);
        assert_eq!(
            code.finish().unwrap(),
            [
                of(0x56, 1, 3, 7),
                of(0x18, 2, 0, 0x5566_7788),
                of(0, 0, 0, 0x1122_3344),
                of(0x05, 0, -4, 0),
                of(0x95, 0, 0, 0)
            ]
        );
    }

    #[test]
    fn a_label_without_a_place_is_an_error() {
        let mut code = Code::default();
        let nowhere = code.label();
        code.jump(nowhere);
        assert!(code.finish().is_err());
    }
}
