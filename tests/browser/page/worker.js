// The device and everything computed on it, off the page's thread, so that the page answers while the CPU path runs.
// Takes { id, method, args }; `open` makes the session, the rest are its methods. Gives { id, value } or { id, error }.
import init, { Session } from './pkg/orthant_browser.js';

const loaded = init();
let session;

// What the browser says of its adapter: wgpu passes only the description on, which most browsers leave empty.
async function adapter() {
  if (!navigator.gpu) return { webgpu: false };
  const found = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!found) return { webgpu: true, adapter: null };
  const { vendor, architecture, device, description } = found.info ?? {};
  const software = found.info?.isFallbackAdapter ?? found.isFallbackAdapter ?? false;
  return { webgpu: true, adapter: { vendor, architecture, device, description, software } };
}

async function open(choice) {
  const [browser] = await Promise.all([adapter(), loaded]);
  // The library finds no adapter in either case; asked for a GPU it would say so by an error, and the page is to go on.
  const usable = browser.adapter && choice !== 'cpu';
  session = await Session.open(usable ? choice : 'cpu');
  return { ...browser, choice, ...JSON.parse(session.describe()) };
}

// One call at a time, in order.
let last = Promise.resolve();
addEventListener('message', ({ data: { id, method, args } }) => {
  last = last.then(async () => {
    try {
      const value = method === 'open' ? await open(...args) : JSON.parse(await session[method](...args));
      postMessage({ id, value });
    } catch (error) {
      postMessage({ id, error: String(error?.message ?? error) });
    }
  });
});
