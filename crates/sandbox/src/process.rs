//! Builds the OCI process object for `exec`.

use serde_json::{Map, Value, json};

use super::error::SandboxError;
use super::files::Config;
use super::image::{absolute, check_command, check_env, has_variable, set_variable};
use super::layout::Layout;
use super::options::Terminal;
use super::protocol::ExecOptions;
use super::spec;
use super::users;

/// Resolves `options` for the sandbox in `layout`. Unset options default to the first process's
/// values.
pub(super) fn resolve_exec(layout: &Layout, options: &ExecOptions) -> Result<Value, SandboxError> {
    let damaged = |why: &str| SandboxError::damaged(layout.config(), why);
    let config =
        Config::read(layout)?.ok_or_else(|| SandboxError::NotRunning(layout.id().to_string()))?;
    let process = config.get("process").and_then(Value::as_object);
    let process = process.ok_or_else(|| damaged("it has no process"))?;
    let identity = match &options.user {
        None => None,
        Some(user) => Some(users::resolve(&layout.rootfs(), user)?),
    };
    let env = process.get("env").and_then(Value::as_array);
    let env = env.ok_or_else(|| damaged("its process has no environment"))?;
    let env = env.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let mut process = exec_process(process.clone(), env, options)?;
    if let Some(identity) = identity {
        let given = process.get("capabilities").and_then(|all| all.get("bounding"));
        let given = given.and_then(Value::as_array);
        let given = given.ok_or_else(|| damaged("its process has no set of capabilities"))?;
        let given: Vec<String> =
            given.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        process.insert("user".to_owned(), spec::user(&identity));
        process.insert("capabilities".to_owned(), spec::capabilities(&identity, &given));
        // The first process's HOME belongs to another user.
        if !has_variable(&options.env, "HOME")
            && let Some(env) = process.get_mut("env").and_then(Value::as_array_mut)
        {
            env.retain(|entry| !entry.as_str().is_some_and(|entry| entry.starts_with("HOME=")));
            env.push(json!(format!("HOME={}", identity.home)));
        }
    }
    Ok(Value::Object(process))
}

fn exec_process(
    mut process: Map<String, Value>,
    mut env: Vec<String>,
    options: &ExecOptions,
) -> Result<Map<String, Value>, SandboxError> {
    check_command(&options.command)?;
    check_env(&options.env)?;
    if options.command.first().is_none_or(String::is_empty) {
        return Err(SandboxError::option("the command", "nothing is to be run; give a program"));
    }
    if options.terminal == Terminal::Pty && !has_variable(&env, "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    for entry in &options.env {
        set_variable(&mut env, entry);
    }
    let mut set = |key: &str, value: Value| process.insert(key.to_owned(), value);
    set("terminal", json!(options.terminal == Terminal::Pty));
    set("args", json!(options.command));
    set("env", json!(env));
    if let Some(dir) = &options.workdir {
        set("cwd", json!(absolute(dir)?));
    }
    match options.size {
        Some(size) => {
            set("consoleSize", json!({ "height": size.rows, "width": size.columns }));
        }
        None => {
            process.remove("consoleSize");
        }
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Stdin;
    use crate::protocol::{Output, WindowSize};

    fn options(command: &[&str]) -> ExecOptions {
        ExecOptions {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: vec!["A=mine".to_owned()],
            user: None,
            workdir: Some("/w".to_owned()),
            terminal: Terminal::Pty,
            size: Some(WindowSize { rows: 3, columns: 4 }),
            stdin: Stdin::Empty,
            output: Output::Stream,
        }
    }

    fn first() -> Map<String, Value> {
        let first = json!({ "args": ["first"], "cwd": "/", "consoleSize": {}, "rlimits": [1] });
        first.as_object().unwrap().clone()
    }

    #[test]
    fn unset_exec_options_default_to_those_of_the_first_process() {
        let env = vec!["A=image".to_owned(), "B=image".to_owned()];
        let made = exec_process(first(), env.clone(), &options(&["x"])).unwrap();
        let wanted = json!({
            "args": ["x"], "cwd": "/w", "terminal": true, "rlimits": [1],
            "env": ["A=mine", "B=image", "TERM=xterm"],
            "consoleSize": {"height": 3, "width": 4},
        });
        assert_eq!(Value::Object(made), wanted);
        let plain =
            ExecOptions { workdir: None, size: None, terminal: Terminal::None, ..options(&["x"]) };
        let made = exec_process(first(), env, &plain).unwrap();
        assert_eq!((&made["cwd"], made.contains_key("consoleSize")), (&json!("/"), false));
    }

    #[test]
    fn invalid_commands_and_relative_workdirs_are_refused() {
        for command in [&[][..], &[""], &["a\0"]] {
            assert!(exec_process(first(), Vec::new(), &options(command)).is_err(), "{command:?}");
        }
        let relative = ExecOptions { workdir: Some("w".to_owned()), ..options(&["x"]) };
        assert!(exec_process(first(), Vec::new(), &relative).is_err());
    }
}
