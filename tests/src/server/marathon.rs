//! Marathon's API, as far as it goes for the tasks of an app: what runs, and the stream of events.

use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use serde_json::{Value, json};

use super::api::{Answer, Asked, Speaks, lock};

/// The app `/shop/web`.
#[derive(Debug, Default)]
pub struct Marathon(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tasks: Vec<Value>,
    listeners: Vec<Sender<String>>,
}

/// A task of the app that runs.
#[must_use]
pub fn task(id: &str, host: &str, ports: &[u16], alive: bool) -> Value {
    json!({
        "appId": "/shop/web", "id": id, "host": host, "ports": ports, "slaveId": "s", "state": "TASK_RUNNING",
        "stagedAt": "2026-01-01T00:00:00.000Z", "startedAt": "2026-01-01T00:00:01.000Z", "version": "2026-01-01T00:00:00.000Z",
        "healthCheckResults": [{"alive": alive, "consecutiveFailures": 0, "taskId": id}],
    })
}

impl Marathon {
    /// These are its tasks from now on; whoever listens is told that something has happened.
    pub fn runs(&self, tasks: &[Value]) {
        let mut state = lock(&self.0);
        state.tasks = tasks.to_vec();
        let event = "event: status_update_event\r\ndata: {\"eventType\": \"status_update_event\"}\r\n\r\n";
        state.listeners.retain(|listener| listener.send(event.to_owned()).is_ok());
    }
}

impl Speaks for Marathon {
    fn answer(&self, asked: &Asked) -> Answer {
        let mut state = lock(&self.0);
        match (asked.method.as_str(), asked.path.as_str()) {
            ("GET", "/v2/apps/shop/web/tasks") => {
                Answer::Whole(200, json!({"tasks": state.tasks}).to_string())
            }
            ("GET", "/v2/events") if asked.header("accept") == "text/event-stream" => {
                let (tell, said) = channel();
                let _ = tell.send("event: event_stream_attached\r\ndata: {}\r\n\r\n".to_owned());
                state.listeners.push(tell);
                Answer::Stream(said)
            }
            _ => Answer::Whole(404, json!({"message": "App '/shop/web' does not exist"}).to_string()),
        }
    }
}
