//! What a service says of its own share of the traffic, in the words of HAProxy's agent-check.
//!
//! It can only lower the share that it is defined with, or ask for nothing new. Pure.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::Level;
use crate::model::Weight;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// So much of the weight, from 0 to 100. 0 is a drain.
    pub percent: u8,
    /// Nothing new, what there is may go on.
    pub drain: bool,
}

impl Advice {
    /// Nothing is asked for.
    pub const NONE: Self = Self { percent: 100, drain: false };

    /// Both of them: the smaller share, and a drain if one asks for it.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { percent: self.percent.min(other.percent), drain: self.drain || other.drain }
    }

    /// Does it ask for a drain?
    #[must_use]
    pub fn drains(self) -> bool {
        self.drain || self.percent == 0
    }

    /// What is left of a weight, 1 at least: who is to get nothing is drained.
    #[must_use]
    pub fn of(self, weight: Weight) -> Weight {
        let share = u32::from(weight.0.get()) * u32::from(self.percent.min(100)) / 100;
        Weight(u16::try_from(share).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN))
    }

    /// Reads an answer: words separated by spaces, tabs or commas (HAProxy's documentation, `agent-check`). What comes later
    /// wins. `maxconn:` is not ours.
    ///
    /// # Errors
    /// There is no word in it that means anything; the text repeats it.
    pub fn read(answer: &str) -> Result<(Level, Self), String> {
        let line = answer.lines().next().unwrap_or_default();
        let (mut level, mut advice, mut understood) = (Level::Passing, Self::NONE, false);
        let (words, reason) = line.split_once('#').unwrap_or((line, ""));
        let _ = reason;
        for word in words.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
            match word.to_ascii_lowercase().as_str() {
                "up" => level = Level::Passing,
                "ready" => advice.drain = false,
                "down" | "fail" | "failed" | "stopped" => level = Level::Critical,
                "drain" | "maint" => advice.drain = true,
                word => match word.strip_suffix('%').and_then(|number| number.parse::<u32>().ok()) {
                    Some(percent) => advice.percent = u8::try_from(percent.min(100)).unwrap_or(100),
                    None if word.starts_with("maxconn:") => {}
                    None => continue,
                },
            }
            understood = true;
        }
        if understood {
            Ok((level, advice))
        } else {
            Err(format!("it answers {line:?}, which means nothing"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(answer: &str) -> (Level, u8, bool) {
        let (level, advice) = Advice::read(answer).unwrap();
        (level, advice.percent, advice.drains())
    }

    #[test]
    fn the_words_of_haproxy_mean_what_they_mean_there() {
        assert_eq!(read("up\n"), (Level::Passing, 100, false));
        assert_eq!(read("75%\r\n"), (Level::Passing, 75, false));
        assert_eq!(read("up,50%\n"), (Level::Passing, 50, false));
        assert_eq!(read("ready up 10%"), (Level::Passing, 10, false));
        assert_eq!(read("drain"), (Level::Passing, 100, true));
        assert_eq!(read("MAINT"), (Level::Passing, 100, true));
        assert_eq!(read("0%"), (Level::Passing, 0, true));
        assert_eq!(read("250%"), (Level::Passing, 100, false));
        assert_eq!(read("down # the disk is full"), (Level::Critical, 100, false));
        assert_eq!(read("up maxconn:20"), (Level::Passing, 100, false));
        for nonsense in ["", "hello", "%", "-5%", "# up"] {
            assert!(Advice::read(nonsense).is_err(), "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn a_weight_is_only_ever_lowered_and_never_to_nothing(weight in 1u16.., percent in 0u8..) {
            let weight = Weight(NonZeroU16::new(weight).unwrap());
            let left = Advice { percent, drain: false }.of(weight);
            prop_assert!(left <= weight);
            if percent >= 100 {
                prop_assert_eq!(left, weight);
            }
        }

        #[test]
        fn no_answer_is_too_strange(answer in any::<String>()) {
            let _ = Advice::read(&answer);
        }
    }
}
