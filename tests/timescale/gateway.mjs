// The real TimescaleDB (a WebAssembly build of PostgreSQL with the extension) behind PostgreSQL's wire protocol.
// node gateway.mjs PACKAGE_DIRECTORY: prints "listening PORT" once it serves on loopback.
//
// There is one backend session for all connections. So transactions are serialised (a connection keeps the lock while
// its transaction is open), prepared statements get a name per connection, and search_path follows the connection that
// speaks. Other settings, temporary tables and advisory locks are shared, and there are no background workers.

import net from "node:net";
import path from "node:path";
import { pathToFileURL } from "node:url";

const load = (file) => import(pathToFileURL(path.join(process.argv[2], "dist", file)).href);
const { PGlite } = await load("index.js");
const { timescaledb } = await load("timescaledb/index.js");
const db = await PGlite.create({ extensions: { timescaledb } });
await db.exec("create extension timescaledb; set client_min_messages = notice");

const SSL_REQUEST = 80877103, GSS_REQUEST = 80877104, CANCEL_REQUEST = 80877102;
const COPY_IN_RESPONSE = "G", READY = "Z";

const message = (type, ...parts) => {
  const body = Buffer.concat(parts.map((part) => (typeof part === "string" ? Buffer.from(part + "\0") : part)));
  const head = Buffer.alloc(5);
  head.write(type, 0, "latin1");
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
};
const int32 = (value) => { const b = Buffer.alloc(4); b.writeInt32BE(value); return b; };
const settings = (await db.query("select name, setting from pg_settings where name in ('server_version', 'DateStyle', " +
  "'server_encoding', 'client_encoding', 'integer_datetimes', 'standard_conforming_strings', 'TimeZone', 'IntervalStyle')")).rows;
const greeting = Buffer.concat([message("R", int32(0)), ...settings.map((s) => message("S", s.name, s.setting)),
  message("K", int32(1), int32(1)), message(READY, Buffer.from("I"))]);

// Yields [type, whole message] of a reply or request.
function* split(buffer) {
  for (let at = 0; at + 5 <= buffer.length; at += 1 + buffer.readInt32BE(at + 1))
    yield [String.fromCharCode(buffer[at]), buffer.subarray(at, at + 1 + buffer.readInt32BE(at + 1))];
}

let lock = Promise.resolve(), numbers = 0, spoke = "";
const acquire = () => { let free; const before = lock; lock = new Promise((r) => (free = r)); return before.then(() => free); };

// A name of a prepared statement, made unique to the connection; "" stays the unnamed one.
const rename = (prefix, body, at) => body[at] === 0 ? body
  : Buffer.concat([body.subarray(0, at), Buffer.from(prefix), body.subarray(at)]);
function owned(type, whole, prefix) {
  const body = whole.subarray(5);
  if (type === "P") return message(type, rename(prefix, body, 0));
  if (type === "B") return message(type, rename(prefix, body, body.indexOf(0) + 1));
  if ((type === "D" || type === "C") && body[0] === 83) return message(type, rename(prefix, body, 1));
  return whole;
}

async function serve(socket) {
  const prefix = `c${++numbers}_`;
  let waiting = Buffer.alloc(0), started = false, path = "public", release = null, group = [], copying = null;

  async function ask(bytes, { hidden = "" } = {}) {
    release ??= await acquire();
    if (spoke !== prefix) {
      await db.exec(`set search_path to ${path}`);
      spoke = prefix;
    }
    const reply = Buffer.from(await db.execProtocolRaw(bytes));
    const messages = [...split(reply)];
    const ready = messages.findLast(([type]) => type === READY);
    if (ready && ready[1][5] === 73) { release(); release = null; }
    return Buffer.concat(messages.filter(([type]) => type !== hidden).map(([, whole]) => whole));
  }

  async function take(type, whole) {
    if (type === "X") return socket.end();
    if (copying) {
      copying.push(whole);
      if (type === "c" || type === "f") {
        const all = Buffer.concat(copying);
        copying = null;
        socket.write(await ask(all, { hidden: COPY_IN_RESPONSE }));
      }
    } else if (type === "Q" && /^\s*copy\s.*\sfrom\s+stdin/is.test(whole.toString("utf8", 5))) {
      copying = [whole];
      const binary = /binary/i.test(whole.toString("utf8", 5)) ? 1 : 0;
      socket.write(message(COPY_IN_RESPONSE, Buffer.from([binary, 0, 0])));
    } else if (type === "Q") {
      socket.write(await ask(whole));
    } else {
      if (type === "H" && !group.length) return; // all before it is answered already
      group.push(owned(type, whole, prefix));
      if (type !== "S" && type !== "H") return;
      const all = Buffer.concat(group);
      group = [];
      socket.write(await ask(all));
    }
  }

  const close = async () => {
    if (release) await db.exec("rollback").catch(() => {}), release?.();
    release = null;
  };
  try {
    for await (const chunk of socket) {
      waiting = waiting.length ? Buffer.concat([waiting, chunk]) : chunk;
      while (!started && waiting.length >= 8 && waiting.length >= waiting.readInt32BE(0)) {
        const startup = waiting.subarray(8, waiting.readInt32BE(0)), code = waiting.readInt32BE(4);
        waiting = waiting.subarray(waiting.readInt32BE(0));
        if (code === CANCEL_REQUEST) return socket.end();
        if (code === SSL_REQUEST || code === GSS_REQUEST) { socket.write("N"); continue; }
        path = /search_path=([\w,"]+)/.exec(startup.toString())?.[1] ?? path;
        started = true;
        socket.write(greeting);
      }
      while (started && waiting.length >= 5 && waiting.length >= 1 + waiting.readInt32BE(1)) {
        const size = 1 + waiting.readInt32BE(1), whole = waiting.subarray(0, size);
        waiting = waiting.subarray(size);
        await take(String.fromCharCode(whole[0]), whole);
      }
    }
  } catch (error) {
    console.error(error);
  } finally {
    await close();
    socket.destroy();
  }
}

// Whoever started this is gone when its end of the pipe is.
process.stdin.on("end", () => process.exit(0)).resume();

const server = net.createServer({ noDelay: true }, serve);
server.listen(0, "127.0.0.1", () => console.log(`listening ${server.address().port}`));
