// Asking the server, and reading its server-sent events: fetch can post, which EventSource cannot.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function refusal(response) {
  const text = await response.text();
  let message = text || response.statusText;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // Not the server's own form: a proxy's page, say. Its text is told as it is.
  }
  return new Refused(message, response.status);
}

export async function get(path, key) {
  const response = await fetch(path, { headers: headers(key) });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

// Yields each event's data; throws what the server refuses, also in the middle of the stream.
export async function* draw(body, key, signal) {
  const response = await fetch("/v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused("the server ended the stream before the picture was done", 0);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      if (!data.length) continue;
      if (data[0] === "[DONE]") return;
      const told = JSON.parse(data.join("\n"));
      if (told.error) throw new Refused(told.error.message, 0);
      yield told;
    }
  }
}
