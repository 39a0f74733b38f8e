/**
 * Gives the memory of an array back now; nobody may look at it, or at anything else over its buffer, afterwards. A collector is in no hurry with bytes outside
 * of its heap, and what is copied while a cache is restored or planned comes to as many as the cache has, in an isolate that has no room for both.
 * https://developer.mozilla.org/en-US/docs/Web/JavaScript/Reference/Global_Objects/ArrayBuffer/transfer
 */
export function release(array: ArrayBufferView<ArrayBufferLike>): void {
  const buffer = array.buffer as ArrayBuffer;
  // Arrays may share one.
  if (!buffer.detached) buffer.transfer(0);
}
