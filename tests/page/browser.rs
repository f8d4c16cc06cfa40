//! A real Chromium without a screen, driven by WebDriver. It ends with the test, whatever happens.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use inlay_testkit::process::{Server, find_program, free_addresses};
use inlay_testkit::scratch;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What an element's id is called in WebDriver.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// How long a page may take for something: only what never happens takes it all.
const PATIENCE: Duration = Duration::from_mins(1);

const FLAGS: [&str; 12] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--force-device-scale-factor=1",
    // Through a pipe: the browser ends when the driver does, however that ends.
    "--remote-debugging-pipe",
];

pub(crate) struct Browser {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    session: String,
    // In the order of their ends: the driver's files go last.
    _driver: Server,
    pub(crate) dir: TempDir,
}

impl Browser {
    /// Starts a browser whose window has this size, and which prefers light or dark colours.
    pub(crate) fn start(width: u32, height: u32) -> Self {
        let chromium = find_program("chromium").unwrap();
        let program = find_program("chromedriver").unwrap();
        let dir = scratch().unwrap();
        let [address] = free_addresses().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let variables = [("HOME", home.as_path()), ("TMPDIR", dir.path())];
        let port = [format!("--port={}", address.port())];
        let log = dir.path().join("driver.log");
        let mut driver = Server::start_with(&program, &port, &log, variables).unwrap();
        driver.wait_until(|| std::net::TcpStream::connect(address).is_ok()).unwrap();
        let mut flags: Vec<String> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
        flags.push(format!("--user-data-dir={}", dir.path().join("profile").display()));
        flags.push(format!("--window-size={width},{height}"));
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut browser = Self {
            runtime,
            client,
            session: format!("http://{address}/session"),
            _driver: driver,
            dir,
        };
        let made = browser.ask(reqwest::Method::POST, "", &capabilities);
        browser.session = format!("{}/{}", browser.session, made["sessionId"].as_str().unwrap());
        // The page of a new tab is a program of its own: away with it and what it has loaded.
        browser.post("/url", &json!({"url": "about:blank"}));
        browser.log("performance");
        // The window's frame takes some of the size that was asked for.
        browser.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        );
        browser
    }

    /// Opens a page from a file, with its colours for a dark or a light screen.
    pub(crate) fn open(&self, page: &str, scheme: &str) {
        let file = self.dir.path().join("page.html");
        std::fs::write(&file, page).unwrap();
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        );
        self.post("/url", &json!({"url": format!("file://{}", file.display())}));
    }

    fn ask(&self, method: reqwest::Method, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let answer: String = self.runtime.block_on(async {
            let request =
                self.client.request(method, &url).timeout(PATIENCE).body(body.to_string());
            request.send().await.unwrap().text().await.unwrap()
        });
        let mut answer: Value = serde_json::from_str(&answer).unwrap();
        let value = answer["value"].take();
        assert!(value["error"].is_null(), "{path} {body}: {value}");
        value
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.ask(reqwest::Method::POST, path, body)
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// What a script's function body returns, after the frame that shows what was done before.
    pub(crate) fn eval(&self, script: &str) -> Value {
        let waits = format!(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => {{ \
             try {{ done((() => {{ {script} }})()); }} catch (error) {{ done('threw ' + error.stack); }} }}));"
        );
        let value = self.post("/execute/async", &json!({"script": waits, "args": []}));
        assert!(
            !value.as_str().is_some_and(|text| text.starts_with("threw ")),
            "{script}: {value}"
        );
        value
    }

    /// What a reader sees in the elements of a selector.
    pub(crate) fn texts(&self, selector: &str) -> Vec<String> {
        let all = self.eval(&format!(
            "return [...document.querySelectorAll('{selector}')].map((e) => e.innerText.trim())"
        ));
        all.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn text(&self, selector: &str) -> String {
        self.texts(selector).join("\n")
    }

    /// Waits until a script returns true.
    pub(crate) fn until(&self, what: &str, script: &str) {
        let end = Instant::now() + PATIENCE;
        while self.eval(script) != true {
            assert!(Instant::now() < end, "never happened: {what}");
        }
    }

    pub(crate) fn click(&self, selector: &str) {
        let found = self.post("/element", &json!({"using": "css selector", "value": selector}));
        self.post(&format!("/element/{}/click", found[ELEMENT].as_str().unwrap()), &json!({}));
    }

    /// Turns the wheel at a place of the window, in pixels.
    pub(crate) fn wheel(&self, (x, y): (i64, i64), by: i64) {
        let turn = json!({"type": "scroll", "x": x, "y": y, "deltaX": 0, "deltaY": by, "duration": 0, "origin": "viewport"});
        self.post(
            "/actions",
            &json!({"actions": [{"type": "wheel", "id": "wheel", "actions": [turn]}]}),
        );
    }

    pub(crate) fn point(&self, (x, y): (i64, i64)) {
        self.mouse(&[("pointerMove", x, y)]);
    }

    pub(crate) fn click_at(&self, (x, y): (i64, i64)) {
        self.mouse(&[("pointerMove", x, y), ("pointerDown", 0, 0), ("pointerUp", 0, 0)]);
    }

    pub(crate) fn drag(&self, (x, y): (i64, i64), by: i64) {
        self.mouse(&[
            ("pointerMove", x, y),
            ("pointerDown", 0, 0),
            ("pointerMove", x + by / 2, y),
            ("pointerMove", x + by, y),
            ("pointerUp", 0, 0),
        ]);
    }

    fn mouse(&self, steps: &[(&str, i64, i64)]) {
        let step = |&(kind, x, y): &(&str, i64, i64)| match kind {
            "pointerMove" => {
                json!({"type": kind, "x": x, "y": y, "duration": 0, "origin": "viewport"})
            }
            _ => json!({"type": kind, "button": 0}),
        };
        let actions: Vec<Value> = steps.iter().map(step).collect();
        self.post("/actions", &json!({"actions": [{"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}]}));
    }

    /// Presses keys, one after another, wherever the focus is.
    pub(crate) fn keys(&self, keys: &str) {
        let press = |key: char| {
            [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
        };
        let actions: Vec<Value> = keys.chars().flat_map(press).collect();
        self.post(
            "/actions",
            &json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]}),
        );
    }

    fn log(&self, of: &str) -> Vec<Value> {
        self.post("/se/log", &json!({"type": of})).as_array().unwrap().clone()
    }

    /// Fails if the console has anything to say, or anything was asked of a network.
    pub(crate) fn assert_quiet(&self) {
        let said = self.log("browser");
        assert!(said.is_empty(), "the console says: {said:#?}");
        let asked: Vec<String> = self.log("performance").iter().filter_map(request).collect();
        let ours = format!("file://{}/page.html", self.dir.path().display());
        assert!(!asked.is_empty(), "not even the page was asked for");
        let foreign: Vec<&String> =
            asked.iter().filter(|url| **url != ours && !url.starts_with("data:")).collect();
        assert!(foreign.is_empty(), "asked for: {foreign:?}");
    }

    /// A picture of the window, kept below `target/page`. It fails if there is next to nothing on it.
    pub(crate) fn screenshot(&self, name: &str) {
        let encoded = self.ask(reqwest::Method::GET, "/screenshot", &json!({}));
        let picture = STANDARD.decode(encoded.as_str().unwrap()).unwrap();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{name}.png")), &picture).unwrap();
        assert!(picture.starts_with(b"\x89PNG"));
        // One colour all over, even with a line of text on it, is packed into a few kilobytes.
        assert!(picture.len() > 30_000, "{name} is blank: {} bytes", picture.len());
    }
}

/// The address that a message of the performance log asks for.
fn request(entry: &Value) -> Option<String> {
    let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
    let message = &message["message"];
    (message["method"] == "Network.requestWillBeSent")
        .then(|| message["params"]["request"]["url"].as_str().map(str::to_owned))?
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session, or else with the driver.
        let request = self.client.delete(&self.session).timeout(Duration::from_secs(20));
        let _ = self.runtime.block_on(async { request.send().await });
    }
}
