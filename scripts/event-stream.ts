/** The JSON objects of a response's server-sent events, as they come; other events and comments are passed over. */
// biome-ignore lint/suspicious/noExplicitAny: what the events hold is for the reader to say
export async function* eventsOf(response: Response): AsyncGenerator<any> {
  let rest = '';
  for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
    rest += piece;
    const lines = rest.split('\n');
    rest = lines.pop()!;
    for (const line of lines) if (line.startsWith('data: {')) yield JSON.parse(line.slice(6));
  }
}
