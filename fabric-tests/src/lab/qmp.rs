//! [`Qmp`]: QEMU's own commands, one JSON object per line.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::test::Failure;

/// How long QEMU may take over one command.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection to a QEMU.
#[derive(Debug)]
pub struct Qmp {
    from: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Says hello on a fresh connection.
    ///
    /// # Errors
    /// QEMU is silent or refuses.
    pub fn greet(stream: UnixStream) -> Result<Self, Failure> {
        let mut qmp = Self {
            from: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = qmp.read(Instant::now() + LIMIT)?;
        if greeting.get("QMP").is_none() {
            return Err(Failure::new(format!("QEMU greets with {greeting}")));
        }
        qmp.execute("qmp_capabilities", &Value::Null)?;
        Ok(qmp)
    }

    /// Executes a command and returns what it returns. `Null` stands for no arguments.
    ///
    /// # Errors
    /// QEMU's reason, or its silence.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Failure> {
        let mut message = json!({ "execute": command });
        if let (Some(object), false) = (message.as_object_mut(), arguments.is_null()) {
            object.insert("arguments".to_owned(), arguments.clone());
        }
        let mut line = message.to_string();
        line.push('\n');
        self.from.get_mut().write_all(line.as_bytes())?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self
                .read(deadline)
                .map_err(|failure| failure.while_doing(command))?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                let sentence = error.get("desc").and_then(Value::as_str).unwrap_or("no reason");
                return Err(Failure::new(format!("QEMU refuses {command}: {sentence}")));
            }
            self.events.push(answer);
        }
    }

    /// Waits for an event with this name, also one that came before; it is forgotten then.
    ///
    /// # Errors
    /// It has not come by then.
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Value, Failure> {
        let deadline = Instant::now() + limit;
        let is = |event: &Value| event.get("event").and_then(Value::as_str) == Some(name);
        loop {
            if let Some(at) = self.events.iter().position(is) {
                return Ok(self.events.remove(at));
            }
            let event = self.read(deadline).map_err(|failure| failure.while_doing(name))?;
            self.events.push(event);
        }
    }

    fn read(&mut self, deadline: Instant) -> Result<Value, Failure> {
        let mut line = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::new("QEMU does not answer"));
            }
            self.from.get_ref().set_read_timeout(Some(left))?;
            match self.from.read_line(&mut line) {
                Ok(0) => return Err(Failure::new("QEMU has ended")),
                Ok(_) if line.ends_with('\n') => return Ok(serde_json::from_str(&line)?),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn answers_and_events_are_told_apart() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            let mut to = theirs.try_clone().unwrap();
            let mut from = BufReader::new(theirs).lines();
            writeln!(to, r#"{{"QMP": {{"version": {{}}}}}}"#).unwrap();
            for answer in [
                r#"{"return": {}}"#,
                "{\"event\": \"STOP\"}\n{\"return\": {\"running\": false}}",
                r#"{"error": {"class": "GenericError", "desc": "no such device"}}"#,
            ] {
                from.next().unwrap().unwrap();
                writeln!(to, "{answer}").unwrap();
            }
        });
        let mut qmp = Qmp::greet(ours).unwrap();
        assert_eq!(
            qmp.execute("stop", &Value::Null).unwrap(),
            json!({ "running": false })
        );
        let refused = qmp.execute("device_del", &json!({ "id": "x" })).unwrap_err();
        assert!(refused.to_string().contains("no such device"), "{refused}");
        qmp.event("STOP", Duration::from_secs(1)).unwrap();
        qemu.join().unwrap();
        assert!(qmp.event("STOP", Duration::from_secs(1)).is_err());
    }
}
