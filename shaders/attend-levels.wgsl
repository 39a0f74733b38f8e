// What attend-stream.wgsl makes of words: levels of codes, ordered for dot4I8Packed, scales, floats; and where a block's vectors lie.

fn bytes(word: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u));
}
fn halves(a: u32, b: u32) -> vec4<f32> { return vec4(unpack2x16float(a), unpack2x16float(b)); }
fn pack4(x: vec4<i32>) -> u32 {
  let b = bitcast<vec4<u32>>(x) & vec4(255u);
  return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}
/// Bytes that 4 integers within -FINE_MOST..FINE_MOST are: high ones, low ones.
fn split4(x: vec4<i32>) -> vec2<u32> {
  let low = ((x + vec4(128)) & vec4(255)) - vec4(128);
  return vec2(pack4((x - low) >> vec4(8u)), pack4(low));
}

/// A byte of up to 16, 4 in each word.
fn byteOf(four: vec4<u32>, code: u32) -> u32 {
  let word = select(select(four.x, four.y, code >= 4u), select(four.z, four.w, code >= 12u), code >= 8u);
  return (word >> ((code & 3u) * 8u)) & 255u;
}
fn fillLut(lane: u32) {
  for (var entry = lane; entry < 256u; entry += WIDTH) { lut[entry] = byteOf(LEVELS_4, entry & 15u) | (byteOf(LEVELS_4, entry >> 4u) << 16u); }
  // Two bits of both codes, then the third of both.
  for (var entry = lane; entry < 64u; entry += WIDTH) {
    let first = (entry & 3u) | ((entry >> 2u) & 4u);
    let second = ((entry >> 2u) & 3u) | ((entry >> 3u) & 4u);
    lut[256u + entry] = byteOf(LEVELS_3, first) | (byteOf(LEVELS_3, second) << 16u);
  }
}
/// Levels of a word's 4 pairs: bytes (0 low, 1 low, 0 high, 1 high), then 2 and 3; "low" is the code in the lower bits. No index leaves the table, as a
/// compiler can see.
fn levels4(pairs: u32) -> vec2<u32> {
  return vec2(
    lut[(pairs >> 8u) & 255u] * 256u + lut[pairs & 255u],
    lut[(pairs >> 24u) & 255u] * 256u + lut[(pairs >> 16u) & 255u]);
}
fn levels3(pairs: u32) -> vec2<u32> {
  return vec2(
    lut[((pairs >> 8u) & 63u) + 256u] * 256u + lut[(pairs & 63u) + 256u],
    lut[((pairs >> 24u) & 63u) + 256u] * 256u + lut[((pairs >> 16u) & 63u) + 256u]);
}
/// Codes y of 2 bits at bits 0 and 1 of the bytes as 0, 7, 13, 20, a quarter of the level plus 10: 7 * y - (y >> 1). At bits 2 and 3 four times that.
fn two(x: u32) -> u32 { return (x & 0x03030303u) * 7u - ((x >> 1u) & 0x01010101u); }
fn twoFold(x: u32) -> u32 { return (x & 0x0c0c0c0cu) * 7u - ((x >> 1u) & 0x04040404u); }
/// Of 1 bit as 0, 80: the level, plus 40.
fn one(s: u32) -> u32 { return (s & 0x01010101u) * 80u; }
/// Words of two chunks, ordered as `levels4` does; and back.
fn inPairs(a: u32, b: u32) -> vec2<u32> { return vec2((a & 0xffffu) | (b << 16u), (a >> 16u) | (b & 0xffff0000u)); }
fn dots(a: vec4<u32>, b: u32) -> vec4<i32> {
  return vec4(dot4I8Packed(a.x, b), dot4I8Packed(a.y, b), dot4I8Packed(a.z, b), dot4I8Packed(a.w, b));
}
fn swapWord(x: u32, lane: u32, mask: u32) -> u32 { return bitcast<u32>(swapI(bitcast<i32>(x), lane, mask)); }
fn total(x: u32) -> i32 { return dot4I8Packed(x, 0x01010101u); }

fn nibbleOf(bits: u32) -> u32 { return select(bits, select(9u, 10u, bits == 32u), bits > 8u); }
/// The vectors that hold a lane's pairs of chunks of a half block of codes, from pair g on; of more, the first two.
fn firstVector(half: u32, g: u32) -> u32 {
  let nibble = half >> 27u;
  // 8 bits: 2 vectors a pair, 4: 1, 3 and 2: half a vector, 1: a quarter.
  let at = select(select(select(g / 4u, g / 2u, nibble >= 2u), g, nibble >= 4u), g * 2u, nibble >= 8u);
  return (half & PLACE) + at;
}
fn secondVector(half: u32, g: u32, first: u32) -> u32 {
  let nibble = half >> 27u;
  // Vectors of the third bit of 3-bit codes come behind those of the lower two.
  let third = (half & PLACE) + HEAD_DIM / 16u + g / 4u;
  return select(select(first + 1u, third, nibble == 3u), first, nibble < 3u);
}
/// Pairs of codes of 3 bits.
fn threes(low: u32, high: u32, g: u32) -> u32 {
  return ((low >> ((g & 1u) * 4u)) & 0x0f0f0f0fu) | (((high >> ((g & 3u) * 2u)) & 0x03030303u) << 4u);
}
/// Logarithm of a level's unit, for scales of 1 to 4 bits, and of the least scale code.
fn unitLog(nibble: u32) -> f32 {
  return select(select(select(log2(UNIT_INVERSE_1), log2(UNIT_INVERSE_2), nibble == 2u), log2(UNIT_INVERSE_3), nibble == 3u), log2(UNIT_INVERSE_4), nibble == 4u) - 255.0 / 32.0;
}
/// A token's code of the scale, and the scale's logarithm; a token of a zero vector has none.
fn codeOf(word: u32, token: u32) -> u32 { return (word >> (token * 8u)) & 255u; }
fn scaleLog(code: u32, nibble: u32, base: f32) -> f32 { return f32(code) * 0.03125 + (base + unitLog(nibble)); }
fn halfOf(word: u32, token: u32) -> f32 {
  let pair = unpack2x16float(word);
  return select(pair.x, pair.y, (token & 1u) != 0u);
}
struct Floats { low: vec4<f32>, high: vec4<f32> }
fn floats16(v: vec4<u32>) -> Floats { return Floats(halves(v.x, v.y), halves(v.z, v.w)); }
fn floats32(at: u32) -> Floats { return Floats(bitcast<vec4<f32>>(cache[at]), bitcast<vec4<f32>>(cache[at + 1u])); }
