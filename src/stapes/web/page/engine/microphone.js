/** The microphone as it is: no echo cancellation, noise suppression or gain control, its own rate. */

/**
 * @typedef {object} Microphone
 * @property {number} sampleRate Hz
 * @property {number} channels
 * @property {() => Promise<void>} stop resolves when the last block has been handed over
 */

/**
 * @param {number} wantedChannels a device may give others
 * @param {object} hearer
 * @param {(block: Float32Array[]) => void} hearer.onBlock one array a channel
 * @param {(samples: number) => void} hearer.onLost samples that the audio thread did not get
 * @param {(message: string) => void} hearer.onEnd the device went away
 * @returns {Promise<Microphone>}
 * @throws {Error} one clear sentence: no microphone, no permission, or no way to it
 */
export async function openMicrophone(wantedChannels, { onBlock, onLost, onEnd }) {
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
    throw new Error(
      "A browser lets a page listen only over https or from this computer (http://localhost).",
    );
  }
  const stream = await askFor(wantedChannels);
  const [track] = stream.getAudioTracks();
  let context = null;
  try {
    const settings = track.getSettings();
    const channels = settings.channelCount ?? 1;
    context = contextAt(settings.sampleRate);
    await context.audioWorklet.addModule(new URL("./capture.js", import.meta.url));
    const source = context.createMediaStreamSource(stream);
    const node = new AudioWorkletNode(context, "stapes-capture", {
      numberOfInputs: 1,
      numberOfOutputs: 1,
      channelCount: channels,
      channelCountMode: "explicit",
    });
    source.connect(node);
    node.connect(context.destination); // writes nothing to it; unconnected, some browsers leave it out
    track.onended = () => onEnd("The microphone went away.");
    await context.resume();
    let ended = () => {};
    const lastBlock = new Promise((resolve) => (ended = resolve));
    // Blocks wait in the port until here.
    node.port.onmessage = ({ data }) => {
      if (data.block) onBlock(data.block);
      if (data.lost) onLost(data.lost);
      if (data.ended) ended();
    };
    return {
      sampleRate: context.sampleRate,
      channels,
      async stop() {
        track.onended = null;
        node.port.postMessage("stop");
        await lastBlock;
        source.disconnect();
        node.disconnect();
        track.stop();
        await context.close();
      },
    };
  } catch (error) {
    track.stop();
    await context?.close();
    throw error;
  }
}

async function askFor(channels) {
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: {
        channelCount: { ideal: channels },
        echoCancellation: false,
        noiseSuppression: false,
        autoGainControl: false,
      },
    });
  } catch (error) {
    const why = {
      NotAllowedError: "The browser may not use the microphone: allow it for this page.",
      NotFoundError: "There is no microphone.",
      NotReadableError: "The microphone cannot be used: another program may hold it.",
    };
    throw new Error(why[error.name] ?? `The microphone cannot be used (${error.message}).`, {
      cause: error,
    });
  }
}

/** At the device's own rate, so that nothing resamples before us. */
function contextAt(sampleRate) {
  try {
    return new AudioContext(sampleRate ? { sampleRate } : {});
  } catch {
    return new AudioContext();
  }
}
