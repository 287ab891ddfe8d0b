//! [`Transcript`]: what a test did and saw, line by line, for whoever reads why it failed.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Bytes of one output that a transcript keeps.
const KEPT: usize = 16 << 10;

/// Lines with the seconds since the test began.
#[derive(Debug)]
pub struct Transcript {
    start: Instant,
    text: Mutex<String>,
}

impl Default for Transcript {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            text: Mutex::default(),
        }
    }
}

impl Transcript {
    /// Adds a line.
    pub fn line(&self, line: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "[{seconds:8.3}] {line}");
    }

    /// Adds an output below a line, indented; the middle of a long one is left out.
    pub fn output(&self, name: &str, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let output = String::from_utf8_lossy(bytes);
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        for line in shorten(&output).lines() {
            let _ = writeln!(text, "           {name}| {line}");
        }
    }

    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn shorten(text: &str) -> String {
    if text.len() <= KEPT {
        return text.to_owned();
    }
    let boundary = |from: usize| {
        (from..text.len())
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(text.len())
    };
    let head = boundary(KEPT / 2);
    let tail = boundary(text.len() - KEPT / 2);
    format!(
        "{}\n… {} bytes left out …\n{}",
        text.get(..head).unwrap_or_default(),
        tail - head,
        text.get(tail..).unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_outputs_lose_their_middle() {
        let transcript = Transcript::default();
        transcript.line("guest 0 $ true");
        transcript.output("out", b"");
        transcript.output("out", format!("first\n{}\nlast", "ü\n".repeat(KEPT)).as_bytes());
        let text = transcript.text();
        assert!(text.len() < 20 * KEPT && text.contains("out| first") && text.contains("out| last"));
        assert!(text.contains("bytes left out"));
    }
}
