/*
 * What src/cache/allocation.ts does, on words of all tokens at once: a word is a token's relevance as a key, times 8, plus the first option that it may get.
 * Integers alone, so that both make the same plans. A record is a head's tokens of a segment, 128 at most; its words are padded to 16.
 */

/** Laid out by src/kernels/wasm-plan.ts, which says what each is. */
@unmanaged
class Shape {
  options!: u32;
  segments!: u32;
  kvHeads!: u32;
  mass!: u32;
  /** Bytes of a head's words and of its samples. */
  wordStride!: u32;
  sampleStride!: u32;
  headDim!: u32;
  recordHeader!: u32;
  segmentHeader!: u32;
  spans!: usize;
  words!: usize;
  samples!: usize;
  tiers!: usize;
  /** u32 by option: bytes of a cell's scales; of four cells' codes, 0: the option drops; whether it is plain. */
  scales!: usize;
  codes!: usize;
  plain!: usize;
  /** 16 bytes: first option by tier held; tier by option. */
  first!: usize;
  tierOf!: usize;
}
/** A segment. */
@unmanaged
class Span {
  tokens!: u32;
  /** Of its words and samples from the head's first, in bytes; of its tiers from the first segment's, all heads together; of its tokens in a head's. */
  words!: u32;
  samples!: u32;
  tiers!: u32;
  start!: u32;
}
const SPAN: usize = 20;

/** A token of so many is a sample. */
const SAMPLE: u32 = 8;
/** Of the words of a record; of one that is no token's, or was taken. */
const CLASSES = memory.data(160, 16);
const NONE: u8 = 0xff;
/** Tokens by class, in four places in turn: a count that was just written is slow to read. */
const COUNTS = memory.data(256, 16);
/** u32 by option. */
const OPTIONS = memory.data(32, 16);
/** A record's new tiers. */
const OUT = memory.data(160, 16);

/** The least upper half of a positive float above 0, in the upper 16 bits (0xffff: there is none), and the largest, of `count`. */
export function planRange(line: usize, count: i32): u32 {
  let least = i32x4.splat(0xffff);
  let most = i32x4.splat(0);
  const end = line + (<usize>(count & ~3) << 2);
  let p = line;
  for (; p < end; p += 16) {
    const key = i32x4.shr_u(v128.load(p), 16);
    most = i32x4.max_s(most, key);
    least = i32x4.min_s(least, v128.or(key, i32x4.shr_u(i32x4.eq(key, i32x4.splat(0)), 16)));
  }
  let low: u32 = 0xffff;
  let high: u32 = 0;
  v128.store(OUT, least);
  v128.store(OUT, most, 16);
  for (let i: usize = 0; i < 4; i++) {
    low = min(low, load<u32>(OUT + (i << 2)));
    high = max(high, load<u32>(OUT + (i << 2), 16));
  }
  for (const last = line + (<usize>count << 2); p < last; p += 4) {
    const key = load<u32>(p) >> 16;
    high = max(high, key);
    if (key > 0) low = min(low, key);
  }
  return (low << 16) | high;
}

/** Makes a head's words of its relevance, f32 in position order, and of the tiers that it holds. `least`: the key that words count from. */
export function planWords(shape: usize, head: u32, line: usize, least: i32): void {
  const s = changetype<Shape>(shape);
  const first = v128.load(s.first);
  const from = i16x8.splat(<i16>least);
  const one = i16x8.splat(1);
  const zero = i16x8.splat(0);
  let span = s.spans;
  for (let n = s.segments; n > 0; n--, span += SPAN) {
    const own = changetype<Span>(span);
    const tokens = own.tokens;
    let words = s.words + head * s.wordStride + own.words;
    let samples = s.samples + head * s.sampleStride + own.samples;
    let tiers = s.tiers + own.tiers + head * tokens;
    let x = line + (<usize>own.start << 2);
    for (let t: u32 = 0; t < tokens; t += 8) {
      const full = i16x8.narrow_i32x4_u(
        i32x4.shr_u(v128.load(x), 16),
        i32x4.shr_u(v128.load(x, 16), 16),
      );
      const key = v128.andnot(i16x8.max_s(i16x8.sub(full, from), one), i16x8.eq(full, zero));
      const option = i16x8.extend_low_i8x16_u(v128.swizzle(first, v128.load64_zero(tiers)));
      const word = v128.or(i16x8.shl(key, 3), option);
      v128.store(words, word);
      store<u16>(samples, <u16>i16x8.extract_lane_u(word, 0));
      words += 16;
      samples += 2;
      tiers += 8;
      x += 32;
    }
  }
}

/** Classes, option * 8 + first, of `tokens` words; `limits` u16 [8]: the largest word that gets the option behind it or a later one, 0 for those that are not there. */
// @ts-ignore: decorator
@inline
function classify(words: usize, tokens: u32, limits: usize, last: i32): void {
  const l0 = v128.load16_splat(limits);
  const l1 = v128.load16_splat(limits, 2);
  const l2 = v128.load16_splat(limits, 4);
  const l3 = v128.load16_splat(limits, 6);
  const l4 = v128.load16_splat(limits, 8);
  const l5 = v128.load16_splat(limits, 10);
  const l6 = v128.load16_splat(limits, 12);
  const most = i16x8.splat(<i16>last);
  const seven = i16x8.splat(7);
  let to = CLASSES;
  for (const end = to + tokens; to < end; to += 16) {
    v128.store(
      to,
      i8x16.narrow_i16x8_u(
        classesOf(v128.load(words), l0, l1, l2, l3, l4, l5, l6, most, seven),
        classesOf(v128.load(words, 16), l0, l1, l2, l3, l4, l5, l6, most, seven),
      ),
    );
    words += 32;
  }
}
// @ts-ignore: decorator
@inline
function classesOf(
  word: v128,
  l0: v128,
  l1: v128,
  l2: v128,
  l3: v128,
  l4: v128,
  l5: v128,
  l6: v128,
  most: v128,
  seven: v128,
): v128 {
  let n = i16x8.add(i16x8.le_u(word, l0), i16x8.le_u(word, l1));
  n = i16x8.add(n, i16x8.add(i16x8.le_u(word, l2), i16x8.le_u(word, l3)));
  n = i16x8.add(n, i16x8.add(i16x8.le_u(word, l4), i16x8.le_u(word, l5)));
  n = i16x8.neg(i16x8.add(n, i16x8.le_u(word, l6)));
  const first = v128.and(word, seven);
  // A limit that is not there is 0: only a word of 0 meets it, which has the last option.
  const option = i16x8.max_s(i16x8.min_s(n, most), first);
  return v128.or(i16x8.shl(option, 3), first);
}

// @ts-ignore: decorator
@inline
function countOne(at: usize): void {
  store<u8>(at, load<u8>(at) + 1);
}

/** Counts a record's tokens by class, and by option. */
// @ts-ignore: decorator
@inline
function countRecord(words: usize, tokens: u32, limits: usize, options: u32): void {
  classify(words, tokens, limits, options - 1);
  const zero = i32x4.splat(0);
  for (let i: usize = 0; i < 256; i += 16) v128.store(COUNTS + i, zero);
  let p = CLASSES;
  const end = p + tokens;
  for (const eights = p + (tokens & ~7); p < eights; p += 8) {
    const all = load<u64>(p);
    countOne(COUNTS + <usize>(all & 63));
    countOne(COUNTS + 64 + <usize>((all >> 8) & 63));
    countOne(COUNTS + 128 + <usize>((all >> 16) & 63));
    countOne(COUNTS + 192 + <usize>((all >> 24) & 63));
    countOne(COUNTS + <usize>((all >> 32) & 63));
    countOne(COUNTS + 64 + <usize>((all >> 40) & 63));
    countOne(COUNTS + 128 + <usize>((all >> 48) & 63));
    countOne(COUNTS + 192 + <usize>(all >> 56));
  }
  for (; p < end; p++) countOne(COUNTS + load<u8>(p));
  for (let i: usize = 0; i < 64; i += 16)
    v128.store(
      COUNTS + i,
      i8x16.add(
        i8x16.add(v128.load(COUNTS + i), v128.load(COUNTS + i, 64)),
        i8x16.add(v128.load(COUNTS + i, 128), v128.load(COUNTS + i, 192)),
      ),
    );
  for (let i: usize = 0; i < 8; i++)
    store<u32>(OPTIONS + (i << 2), <u32>((load<u64>(COUNTS + (i << 3)) * 0x0101010101010101) >> 56));
}

/** Takes the token with the highest word of a class, the earliest of equal ones, and gives it a tier. */
function takeBest(words: usize, tokens: u32, own: u32, tier: u8): void {
  const wanted = i8x16.splat(<i8>own);
  let best = i16x8.splat(0);
  const end = CLASSES + tokens;
  let x = words;
  for (let p = CLASSES; p < end; p += 16) {
    const is = i8x16.eq(v128.load(p), wanted);
    best = i16x8.max_u(best, v128.and(v128.load(x), i16x8.extend_low_i8x16_s(is)));
    best = i16x8.max_u(best, v128.and(v128.load(x, 16), i16x8.extend_high_i8x16_s(is)));
    x += 32;
  }
  best = i16x8.max_u(best, v128.shuffle<i16>(best, best, 4, 5, 6, 7, 0, 1, 2, 3));
  best = i16x8.max_u(best, v128.shuffle<i16>(best, best, 2, 3, 0, 1, 6, 7, 4, 5));
  best = i16x8.max_u(best, v128.shuffle<i16>(best, best, 1, 0, 3, 2, 5, 4, 7, 6));
  x = words;
  for (let p = CLASSES; p < end; p += 16) {
    const equal = i8x16.narrow_i16x8_s(i16x8.eq(v128.load(x), best), i16x8.eq(v128.load(x, 16), best));
    const found = i8x16.bitmask(v128.and(equal, i8x16.eq(v128.load(p), wanted)));
    x += 32;
    if (found == 0) continue;
    const at = p - CLASSES + ctz(found);
    store<u8>(CLASSES + at, NONE);
    store<u8>(OUT + at, tier);
    return;
  }
}

/** As src/cache/fill-groups.ts. `words`: where tokens are to be moved, 0: they are only counted. */
// @ts-ignore: decorator
@inline
function fillGroups(options: u32, words: usize, tokens: u32, tierOf: usize): void {
  for (let to: u32 = 0; to + 1 < options; to++) {
    let room = -load<u32>(OPTIONS + (to << 2)) & 3;
    for (let option = to + 1; room > 0 && option < options; option++) {
      if (load<u32>(OPTIONS + (option << 2)) == 0) continue;
      for (let first = <i32>to; room > 0 && first >= 0; first--) {
        const from = option * 8 + first;
        const count = min(room, <u32>load<u8>(COUNTS + from));
        if (count == 0) continue;
        store<u8>(COUNTS + from, <u8>(load<u8>(COUNTS + from) - count));
        store<u32>(OPTIONS + (option << 2), load<u32>(OPTIONS + (option << 2)) - count);
        store<u32>(OPTIONS + (to << 2), load<u32>(OPTIONS + (to << 2)) + count);
        room -= count;
        if (words != 0)
          for (let n = count; n > 0; n--) takeBest(words, tokens, from, load<u8>(tierOf + to));
      }
    }
  }
}

/** Cells of the record that was sized last. */
let cells: u32 = 0;
/** As src/kernels/layout.ts, RecordSizes. */
// @ts-ignore: decorator
@inline
function recordBytes(s: Shape, tokens: u32): u32 {
  let present: u32 = 0;
  let kept: u32 = 0;
  let scaled: u32 = 0;
  let coded: u32 = 0;
  let plain: u32 = 0;
  cells = 0;
  for (let i: usize = 0; i < <usize>s.options << 2; i += 4) {
    const n = load<u32>(OPTIONS + i);
    const code = load<u32>(s.codes + i);
    if (n == 0 || code == 0) continue;
    const n4 = (n + 3) & ~3;
    present++;
    kept += n;
    cells += n4;
    scaled += n4 * load<u32>(s.scales + i);
    coded += (n4 >> 2) * code;
    plain |= load<u32>(s.plain + i);
  }
  if (kept == 0) return 0;
  const map = present > 1 || kept < tokens ? (((tokens + 1) >> 1) + 3) & ~3 : 0;
  const mean = plain != 0 ? 0 : s.headDim;
  return ((((s.recordHeader + present + 3) & ~3) + mean + map + scaled + 15) & ~15) + coded;
}

/**
 * Bytes of a layer's records, whose heads are kvHeads from `head` on. `limits`: as `classify`, by these heads, 16 bytes each. `sampled`: from the samples,
 * each for SAMPLE tokens, and without filling groups.
 */
export function planBytes(shape: usize, head: u32, limits: usize, sampled: bool): u32 {
  const s = changetype<Shape>(shape);
  const options = s.options;
  let bytes = s.segments * s.segmentHeader;
  let span = s.spans;
  for (let n = s.segments; n > 0; n--, span += SPAN) {
    const own = changetype<Span>(span);
    const tokens = own.tokens;
    let masses: u32 = 0;
    for (let h: u32 = 0; h < s.kvHeads; h++) {
      const limit = limits + (<usize>h << 4);
      if (sampled) {
        const samples = (tokens + SAMPLE - 1) / SAMPLE;
        classify(s.samples + (head + h) * s.sampleStride + own.samples, samples, limit, options - 1);
        v128.store(OPTIONS, i32x4.splat(0));
        v128.store(OPTIONS, i32x4.splat(0), 16);
        for (let i: usize = 0; i < samples; i++) {
          const at = OPTIONS + ((load<u8>(CLASSES + i) >> 3) << 2);
          store<u32>(at, load<u32>(at) + SAMPLE);
        }
      } else {
        countRecord(s.words + (head + h) * s.wordStride + own.words, tokens, limit, options);
        fillGroups(options, 0, tokens, 0);
      }
      bytes += recordBytes(s, tokens);
      masses += cells * 2;
    }
    if (s.mass != 0) bytes += (masses + 15) & ~15;
  }
  return bytes;
}

/** Puts a layer's new tiers in the place of those that it holds. */
export function planTiers(shape: usize, head: u32, limits: usize): void {
  const s = changetype<Shape>(shape);
  const tierOf = v128.load(s.tierOf);
  const fresh = i8x16.splat(-1);
  let span = s.spans;
  for (let n = s.segments; n > 0; n--, span += SPAN) {
    const own = changetype<Span>(span);
    const tokens = own.tokens;
    for (let h: u32 = 0; h < s.kvHeads; h++) {
      const words = s.words + (head + h) * s.wordStride + own.words;
      const tiers = s.tiers + own.tiers + (head + h) * tokens;
      countRecord(words, tokens, limits + (<usize>h << 4), s.options);
      for (let i: usize = 0; i < tokens; i += 16)
        v128.store(OUT + i, v128.swizzle(tierOf, i8x16.shr_u(v128.load(CLASSES + i), 3)));
      for (let i = <usize>tokens; (i & 15) != 0; i++) store<u8>(CLASSES + i, NONE);
      fillGroups(s.options, words, tokens, s.tierOf);
      // Tokens that are held more coarsely than any option stay so.
      for (let i: usize = 0; i < tokens; i += 16) {
        const held = v128.load(tiers + i);
        v128.store(OUT + i, i8x16.max_u(v128.load(OUT + i), v128.andnot(held, i8x16.eq(held, fresh))));
      }
      memory.copy(tiers, OUT, tokens);
    }
  }
}
