// Jobs on gradio's queue: each has a session of its own, so that one can be stopped without the others.

let functions; // endpoint -> its number in gradio's config

async function reach(path, request) {
  const response = await fetch(path, request).catch(() => {
    throw new Error("The server can't be reached. Is it still running?");
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.detail || `The server answers ${response.status}.`);
  return answer;
}

async function numberOf(endpoint) {
  if (!functions) {
    const config = await reach("config");
    functions = Object.fromEntries(config.dependencies.map((dependency) => [dependency.api_name, dependency.id]));
  }
  return functions[endpoint];
}

const post = (path, body) =>
  reach(`gradio_api/${path}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export class Stopped extends Error {}

/**
 * Run an endpoint with its arguments in order. `onProgress` gets {step, of} or {waiting: jobs before this one}.
 * `signal` stops the job, in the queue as well as under way; then the promise fails with Stopped.
 */
export function run(endpoint, data, { onProgress = () => {}, signal } = {}) {
  const session = Math.random().toString(36).slice(2);
  let stream, event, number, last;
  const cancel = () => post("cancel", { session_hash: session, fn_index: number, event_id: event }).catch(() => {});
  const job = (async () => {
    number = await numberOf(endpoint);
    ({ event_id: event } = await post("queue/join", { data, fn_index: number, session_hash: session }));
    if (signal?.aborted) {
      cancel(); // nobody would listen to it
      throw new Stopped();
    }
    return new Promise((resolve, reject) => {
      stream = new EventSource(`gradio_api/queue/data?session_hash=${session}`);
      stream.onerror = () => reject(new Error("The connection to the server was lost. Try again."));
      stream.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.msg === "estimation") onProgress({ waiting: message.rank + 1 });
        if (message.msg === "process_starts") onProgress({ waiting: 0 });
        if (message.msg === "process_generating" && message.success) {
          last = apply(last, message.output.data[0]);
          if (last.step) onProgress(last);
        }
        if (message.msg === "process_completed") {
          if (message.success && message.output.data) resolve(message.output.data[0]);
          else reject(new Error(message.output?.error || "The server met a fault; its log says which."));
        }
        if (message.msg === "unexpected_error") reject(new Error(message.message || "The server stopped."));
      };
    });
  })();
  const stopped = new Promise((_, reject) =>
    signal?.addEventListener("abort", () => {
      reject(new Stopped());
      if (event) cancel();
    }),
  );
  return Promise.race([job, stopped]).finally(() => stream?.close());
}

/** The first value comes whole, later ones as gradio's differences: [["replace", path, value], ...]. */
function apply(value, data) {
  if (!Array.isArray(data)) return data;
  for (const [action, path, changed] of data) {
    if (!path.length) {
      value = changed;
      continue;
    }
    let place = value;
    for (const key of path.slice(0, -1)) place = place[key];
    const key = path.at(-1);
    if (action === "delete") delete place[key];
    else place[key] = changed;
  }
  return value;
}
