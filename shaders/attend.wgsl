// Attention of one query row and kvHead over one split: out = softmax(q K^T) V without the division, and the softmax's maximum and sum,
// for GROUP query heads that read the same cells. One workgroup of WARPS * 32 lanes; splits are joined by attend-combine.wgsl.
//
// By segment: (1) a descriptor of every block of 4 tokens, whatever its tier; (2) scores of all cells, LANES lanes a block; (3) weights
// exp(score - maximum); (4) weighted values. The next block's bytes are under way while a block is worked on.
// `// each $h` ... `// end $h` stands for its lines once for each of the GROUP heads (webgpu-prelude.ts, unroll).
//
// A row's result does not depend on the other rows: splits follow from the cells alone, and unseen cells weigh nothing.
//
// Dispatch [splits, KV_HEADS, rows].

@group(0) @binding(6) var<storage, read> segments: array<u32>;       // starts of segment blocks, in units of 16 bytes

const MAX_BLOCKS = MAX_CELLS / 4u;
const WIDTH = WARPS * 32u;
const TEAMS = WIDTH / LANES;

var<workgroup> lut: array<f32, 1024>;                      // [level of each table][lane]: no two lanes meet in a bank
var<workgroup> scores: array<f32, GROUP * MAX_CELLS>;
// Also carries outputs from warp to warp at the end.
var<workgroup> weights: array<vec4<f32>, max(GROUP * MAX_BLOCKS, 2u * GROUP * LANES * WARPS)>;
var<workgroup> blocks: array<vec4<u32>, MAX_BLOCKS>;
var<workgroup> perWarp: array<f32, GROUP * WARPS>;

/// Levels of 4 codes, at bits 0, 8, 16 and 24 of a word.
fn levels(word: u32, base: u32) -> vec4<f32> {
  if (PLAIN) { return vec4<f32>(fourBytes(word) & vec4(15u)) - 8.0; }
  return vec4(
    lut[((word << 5u) & 0x1e0u) | base],
    lut[((word >> 3u) & 0x1e0u) | base],
    lut[((word >> 11u) & 0x1e0u) | base],
    lut[((word >> 19u) & 0x1e0u) | base]);
}
fn bytes(word: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u));
}
fn halves(a: u32, b: u32) -> vec4<f32> { return vec4(unpack2x16float(a), unpack2x16float(b)); }
fn halfAt(i: u32) -> f32 {
  let pair = unpack2x16float(words[i / 2u]);
  return select(pair.x, pair.y, (i & 1u) == 1u);
}

// A block's descriptor: keys' and values' places in units of 16 bytes, each with its bits' nibble (1..4, 8; 9 and 10 for 16 and 32) from bit 27 on;
// places of the keys' and values' scales as word indices, the former with the number of tokens less 1 from bit 30 on. `record`: its first word.
fn describe(g: Group, block: u32, record: u32) -> vec4<u32> {
  return vec4(
    (g.k + block * blockVectors(g.kBits)) | (nibbleOf(g.kBits) << 27u),
    (g.v + block * blockVectors(g.vBits)) | (nibbleOf(g.vBits) << 27u),
    (record + g.kScale / 4u + block * scaleBytes(g.kBits)) | (min(3u, g.n - block * 4u - 1u) << 30u),
    record + g.vScale / 4u + block * scaleBytes(g.vBits));
}
fn nibbleOf(bits: u32) -> u32 { return select(bits, select(9u, 10u, bits == 32u), bits > 8u); }
const PLACE = 0x7ffffffu;

/// The vector that holds this lane's 8 channels of a packed half block, for 3 bits their low two; the first four of 8 bits.
fn rawAt(half: u32, sub: u32) -> vec4<u32> {
  let nibble = half >> 27u;
  // 8, 4, 2, 1 bits: 2, 1, 1/2, 1/4 vectors a lane.
  let shift = select((0x12230u >> (nibble * 4u)) & 15u, 0u, nibble >= 8u);
  return cache[(half & PLACE) + ((sub * 2u) >> shift)];
}
/// Codes of the first 4 channels in the low nibbles of the bytes, of the others in the high ones.
fn nibbles(half: u32, raw: vec4<u32>, sub: u32) -> vec4<u32> {
  let nibble = half >> 27u;
  if (nibble == 4u) { return raw; }
  if (nibble == 1u) { return ones(raw, sub); }
  var codes = twos(raw, sub);
  if (nibble == 3u) { codes |= ones(cache[(half & PLACE) + (CHUNKS + 3u) / 4u + sub / 4u], sub) << vec4(2u); }
  return codes;
}
/// The other four channels of 8 bits.
fn secondAt(half: u32, sub: u32) -> vec4<u32> { return cache[(half & PLACE) + min(sub * 2u + 1u, CHUNKS - 1u)]; }
fn twos(v: vec4<u32>, sub: u32) -> vec4<u32> {
  let x = v >> vec4((sub & 1u) * 4u);
  return (x & vec4(0x03030303u)) | ((x << vec4(2u)) & vec4(0x30303030u));
}
fn ones(v: vec4<u32>, sub: u32) -> vec4<u32> {
  let x = v >> vec4((sub & 3u) * 2u);
  return (x & vec4(0x01010101u)) | ((x << vec4(3u)) & vec4(0x10101010u));
}
/// Where a half's levels begin in the table.
fn lutBase(half: u32, lane: u32) -> u32 {
  let bits = half >> 27u;
  let start = select(select(select(LEVELS_1, LEVELS_2, bits == 2u), LEVELS_3, bits == 3u), LEVELS_4, bits == 4u);
  return ((lane & 31u) | (start * 32u)) & 1023u;
}

/// A token's 8 channels of this lane in a float half; zero past HEAD_DIM.
struct Floats { low: vec4<f32>, high: vec4<f32> }
fn floats(nibble: u32, at: u32, token: u32, sub: u32) -> Floats {
  let bits = select(16u, 32u, nibble == 10u);
  let channel = token * HEAD_DIM + sub * 8u;
  if (HEAD_DIM % 8u == 0u) {
    if (bits == 16u) {
      let v = cache[at + channel / 8u];
      return Floats(halves(v.x, v.y), halves(v.z, v.w));
    }
    return Floats(bitcast<vec4<f32>>(cache[at + channel / 4u]), bitcast<vec4<f32>>(cache[at + channel / 4u + 1u]));
  }
  var x = Floats();
  x.low = fourFloats(bits, at, channel);
  if (sub * 8u + 4u < HEAD_DIM) { x.high = fourFloats(bits, at, channel + 4u); }
  return x;
}
fn fourFloats(bits: u32, at: u32, channel: u32) -> vec4<f32> {
  if (bits == 16u) {
    let w = at * 4u + channel / 2u;
    return halves(words[w], words[w + 1u]);
  }
  let w = at * 4u + channel;
  return bitcast<vec4<f32>>(vec4(words[w], words[w + 1u], words[w + 2u], words[w + 3u]));
}
/// 4 scales of a block, at a word; of plain tiers those of this lane's channels.
fn scales(at: u32, bits: u32, base: f32, sub: u32) -> vec4<f32> {
  if (PLAIN) {
    let h = at * 2u + sub / 4u;
    return vec4(halfAt(h), halfAt(h + PLAIN_GROUPS), halfAt(h + 2u * PLAIN_GROUPS), halfAt(h + 3u * PLAIN_GROUPS));
  }
  if (bits == 8u) { return halves(words[at], words[at + 1u]); }
  return scalesOf(fourBytes(words[at]), bits, base);
}

/// Over the teams of a warp; the same in each.
fn teamSum(x: vec4<f32>, lane: u32) -> vec4<f32> {
  var y = x;
  if (LANES <= 16u) { y += swap4(y, lane, 16u); }
  if (LANES <= 8u) { y += swap4(y, lane, 8u); }
  if (LANES <= 4u) { y += swap4(y, lane, 4u); }
  return y;
}

/// What is needed of a record before its cells.
struct Header { record: u32, present: u32, counts: vec3<u32>, parts: Parts, kBase: f32, vBase: f32, meanScale: f32 }
fn headerAt(segment: u32, kvHead: u32) -> Header {
  let block = segments[segment];
  let tokens = words[block * 4u + 1u];
  let offset = words[block * 4u + 3u + kvHead];
  let record = block + offset / 16u;
  // A head without a record: the segment's own first bytes, with no tier present.
  let first = cache[record];
  let present = select(first.x & 0xffffu, 0u, offset == 0u);
  let counts = vec3(first.z, first.w, cache[record + 1u].x);
  let vAndMean = unpack2x16float(first.y);
  return Header(record, present, counts, partsOf(present, counts, tokens), unpack2x16float(first.x).y, vAndMean.x, vAndMean.y);
}
/// A lane's 8 channels of the mean as words of 4 codes; past HEAD_DIM something else, where queries are zero.
fn meanAt(head: Header, own: u32) -> vec2<u32> {
  let at = head.record * 4u + head.parts.mean / 4u + own * 2u;
  return vec2(words[at], words[at + 1u]);
}

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let split = splits[id.x];
  let item = items[split.item];
  let kvHead = id.y;
  let row = id.z;
  let sub = lane % LANES;
  let team = lane / LANES;

  let own = min(sub, (HEAD_DIM - 1u) / 8u);
  // The token of a block that a lane keeps when scores are summed.
  let upper = (sub & (LANES / 2u)) != 0u;
  let odd = (sub & (LANES / 4u)) != 0u;
  let token = select(0u, 2u, upper) + select(0u, 1u, odd);

  if (lane < 32u) { fillLut(lane); }
  // Of each query head: its query and output in this lane's channels, the softmax's maximum and this lane's share of its sum, the query times
  // the segment's mean. Variables of their own: arrays, and variables outside of functions, may end up in memory.
  // each $h
  var qa$h = vec4<f32>();
  var qb$h = vec4<f32>();
  var outA$h = vec4<f32>();
  var outB$h = vec4<f32>();
  var maximum$h = NEVER;
  var sum$h = 0.0;
  var qMean$h = 0.0;
  {
    let at = split.q + (row * HEADS + kvHead * GROUP + $hu) * HEAD_DIM + sub * 8u;
    if (sub * 8u < HEAD_DIM) {
      qa$h = params.scale * vec4(queries[at], queries[at + 1u], queries[at + 2u], queries[at + 3u]);
    }
    if (sub * 8u + 4u < HEAD_DIM) {
      qb$h = params.scale * vec4(queries[at + 4u], queries[at + 5u], queries[at + 6u], queries[at + 7u]);
    }
  }
  // end $h
  workgroupBarrier();

  let scoreRow = (row * HEADS + kvHead * GROUP) * params.scoreStride + split.scores;
  let exact = split.count == 0u;
  let hidden = select(0u, split.from_, exact);
  var head = Header();
  var mean = vec2<u32>();
  if (!exact) {
    head = headerAt(split.first, kvHead);
    mean = meanAt(head, own);
  }
  for (var i = 0u; i < max(1u, split.count); i++) {
    var count = 0u;
    let kBase = head.kBase;
    let vBase = head.vBase;
    if (exact) {
      // A piece of the exact part reads as one group of floats.
      let seen = min(split.to, max(item.visible + row, split.first) - split.first);
      count = (seen + 3u) / 4u;
      let k = exactAt(item, kvHead, split.first);
      let g = Group(seen, item.exactBits, item.exactBits, 0u, 0u, k, k + exactHalf(item), 0u, 0u);
      if (lane < count) { blocks[lane] = describe(g, lane, 0u); }
    } else {
      let now = head;
      // Past HEAD_DIM the query is zero.
      // each $h
      qMean$h = now.meanScale * (dot(qa$h, bytes(mean.x)) + dot(qb$h, bytes(mean.y)));
      // end $h
      if (i + 1u < split.count) {
        head = headerAt(split.first + i + 1u, kvHead);
        mean = meanAt(head, own);
      }
      var scaleAt = now.parts.scales;
      var codeAt = now.record + now.parts.codes;
      var left = now.present;
      let kinds = countOneBits(left);
      for (var kind = 0u; kind < kinds; kind++) {
        let g = groupAt(firstTrailingBit(left), countOf(now.counts, kind), scaleAt, codeAt);
        left &= left - 1u;
        let last = count + (g.n + 3u) / 4u;
        for (var b = lane; b < last; b += WIDTH) { if (b >= count) { blocks[b] = describe(g, b - count, now.record * 4u); } }
        count = last;
        scaleAt = g.scaleEnd;
        codeAt = g.codeEnd;
      }
    }
    workgroupBarrier();
    // (2) A team without a block repeats the last one, unheard: all lanes take part in every exchange.
    var next = vec4<u32>();
    var raw = vec4<u32>();
    var scale = vec4<f32>();
    if (count > 0u) {
      next = blocks[min(team, count - 1u)];
      if ((next.x >> 27u) <= 8u) {
        raw = rawAt(next.x, own);
        scale = scales(next.z & 0x3fffffffu, next.x >> 27u, kBase, own);
      }
    }
    for (var first = 0u; first < count; first += TEAMS) {
      let d = next;
      let now = raw;
      let kScale = scale;
      next = blocks[min(first + team + TEAMS, count - 1u)];
      if ((next.x >> 27u) <= 8u) {
        raw = rawAt(next.x, own);
        scale = scales(next.z & 0x3fffffffu, next.x >> 27u, kBase, own);
      }
      let nibble = d.x >> 27u;
      var t0: Floats;
      var t1: Floats;
      var t2: Floats;
      var t3: Floats;
      if (nibble < 8u) {
        let codes = nibbles(d.x, now, own);
        let base = lutBase(d.x, lane);
        t0 = Floats(levels(codes.x, base), levels(codes.x >> 4u, base));
        t1 = Floats(levels(codes.y, base), levels(codes.y >> 4u, base));
        t2 = Floats(levels(codes.z, base), levels(codes.z >> 4u, base));
        t3 = Floats(levels(codes.w, base), levels(codes.w >> 4u, base));
      } else if (nibble == 8u) {
        let b = secondAt(d.x, own);
        t0 = Floats(bytes(now.x), bytes(b.x));
        t1 = Floats(bytes(now.y), bytes(b.y));
        t2 = Floats(bytes(now.z), bytes(b.z));
        t3 = Floats(bytes(now.w), bytes(b.w));
      } else {
        t0 = floats(nibble, d.x & PLACE, 0u, own);
        t1 = floats(nibble, d.x & PLACE, 1u, own);
        t2 = floats(nibble, d.x & PLACE, 2u, own);
        t3 = floats(nibble, d.x & PLACE, 3u, own);
      }
      let factor = select(vec4(1.0), kScale, nibble <= 8u);
      let block = first + team;
      let writes = block < count && (sub & (LANES / 4u - 1u)) == 0u;
      let there = token < ((d.z >> 30u) + 1u) && block * 4u + token >= hidden;
      // each $h
      {
        let mean = select(0.0, qMean$h, nibble <= 8u);
        let s = factor * vec4(
          dot(qa$h, t0.low) + dot(qb$h, t0.high),
          dot(qa$h, t1.low) + dot(qb$h, t1.high),
          dot(qa$h, t2.low) + dot(qb$h, t2.high),
          dot(qa$h, t3.low) + dot(qb$h, t3.high)) + mean;
        // Sums over the lanes of a block; each lane keeps one token.
        let two = select(s.xy, s.zw, upper) + swap2(select(s.zw, s.xy, upper), lane, LANES / 2u);
        var x = select(two.x, two.y, odd) + swap1(select(two.y, two.x, odd), lane, LANES / 4u);
        if (LANES >= 8u) { x += swap1(x, lane, LANES / 8u); }
        if (LANES >= 16u) { x += swap1(x, lane, LANES / 16u); }
        if (LANES >= 32u) { x += swap1(x, lane, LANES / 32u); }
        if (writes) { scores[$hu * MAX_CELLS + block * 4u + token] = select(NEVER, x, there); }
      }
      // end $h
    }
    workgroupBarrier();

    // (3)
    // each $h
    {
      var largest = NEVER;
      for (var b = lane; b < count; b += WIDTH) {
        let at = $hu * MAX_CELLS + b * 4u;
        largest = max(largest, max(max(scores[at], scores[at + 1u]), max(scores[at + 2u], scores[at + 3u])));
      }
      largest = maximumOf(largest, lane);
      if ((lane & 31u) == 0u) { perWarp[$hu * WARPS + lane / 32u] = largest; }
    }
    // end $h
    workgroupBarrier();
    // each $h
    {
      var largest = maximum$h;
      for (var warp = 0u; warp < WARPS; warp++) { largest = max(largest, perWarp[$hu * WARPS + warp]); }
      let shrink = exp(maximum$h - largest);
      maximum$h = largest;
      outA$h *= shrink;
      outB$h *= shrink;
      sum$h *= shrink;
      for (var b = lane; b < count; b += WIDTH) {
        let at = $hu * MAX_CELLS + b * 4u;
        let x = vec4(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
        let w = select(exp(x - largest), vec4(0.0), x <= vec4(NEVER));
        weights[$hu * MAX_BLOCKS + b] = w;
        sum$h += (w.x + w.y) + (w.z + w.w);
        if (params.scoreStride > 0u) {
          let to = scoreRow + i * MAX_CELLS + $hu * params.scoreStride + b * 4u;
          // What lies beside a piece's slots belongs to who reads it with other queries.
          let most = select(MAX_CELLS, split.to, exact);
          for (var c = 0u; c < 4u; c++) {
            let cell = b * 4u + c;
            if (cell >= hidden && cell < most) { scoresOut[to + c] = x[c]; }
          }
        }
      }
    }
    // end $h
    workgroupBarrier();

    // (4)
    if (count > 0u) {
      next = blocks[min(team, count - 1u)];
      if ((next.y >> 27u) <= 8u) {
        raw = rawAt(next.y, own);
        scale = scales(next.w, next.y >> 27u, vBase, own);
      }
    }
    for (var block = team; block < count; block += TEAMS) {
      let d = next;
      let now = raw;
      let vScale = scale;
      next = blocks[min(block + TEAMS, count - 1u)];
      if ((next.y >> 27u) <= 8u) {
        raw = rawAt(next.y, own);
        scale = scales(next.w, next.y >> 27u, vBase, own);
      }
      let nibble = d.y >> 27u;
      if (nibble <= 8u) {
        // c0: values of the first channel for 4 tokens, and of the fifth.
        var c0: Floats;
        var c1: Floats;
        var c2: Floats;
        var c3: Floats;
        if (nibble < 8u) {
          let codes = nibbles(d.y, now, own);
          let base = lutBase(d.y, lane);
          c0 = Floats(levels(codes.x, base), levels(codes.x >> 4u, base));
          c1 = Floats(levels(codes.y, base), levels(codes.y >> 4u, base));
          c2 = Floats(levels(codes.z, base), levels(codes.z >> 4u, base));
          c3 = Floats(levels(codes.w, base), levels(codes.w >> 4u, base));
        } else {
          let b = secondAt(d.y, own);
          c0 = Floats(bytes(now.x), bytes(b.x));
          c1 = Floats(bytes(now.y), bytes(b.y));
          c2 = Floats(bytes(now.z), bytes(b.z));
          c3 = Floats(bytes(now.w), bytes(b.w));
        }
        // each $h
        {
          let x = weights[$hu * MAX_BLOCKS + block] * vScale;
          outA$h += vec4(dot(x, c0.low), dot(x, c1.low), dot(x, c2.low), dot(x, c3.low));
          outB$h += vec4(dot(x, c0.high), dot(x, c1.high), dot(x, c2.high), dot(x, c3.high));
        }
        // end $h
      } else {
        let n = (d.z >> 30u) + 1u;
        var t0 = floats(nibble, d.y & PLACE, 0u, own);
        var t1 = floats(nibble, d.y & PLACE, 1u, own);
        var t2 = floats(nibble, d.y & PLACE, 2u, own);
        var t3 = floats(nibble, d.y & PLACE, 3u, own);
        // What lies past the written slots may be no number.
        if (n < 4u) {
          t3 = Floats();
          if (n < 3u) { t2 = Floats(); }
          if (n < 2u) { t1 = Floats(); }
        }
        // each $h
        {
          let x = weights[$hu * MAX_BLOCKS + block];
          outA$h += x.x * t0.low + x.y * t1.low + x.z * t2.low + x.w * t3.low;
          outB$h += x.x * t0.high + x.y * t1.high + x.z * t2.high + x.w * t3.high;
        }
        // end $h
      }
    }
    workgroupBarrier();
  }

  // Over the teams, then over the warps, then to memory.
  let warp = lane / 32u;
  // each $h
  {
    let total = sumOf(sum$h, lane);
    let a = teamSum(outA$h, lane);
    let b = teamSum(outB$h, lane);
    if ((lane & 31u) == 0u) { perWarp[$hu * WARPS + warp] = total; }
    if ((lane & 31u) < LANES) {
      weights[(($hu * WARPS + warp) * LANES + sub) * 2u] = a;
      weights[(($hu * WARPS + warp) * LANES + sub) * 2u + 1u] = b;
    }
  }
  // end $h
  workgroupBarrier();
  if (lane >= LANES) { return; }
  // each $h
  {
    var total = 0.0;
    var a = vec4<f32>();
    var b = vec4<f32>();
    for (var w = 0u; w < WARPS; w++) {
      total += perWarp[$hu * WARPS + w];
      a += weights[(($hu * WARPS + w) * LANES + sub) * 2u];
      b += weights[(($hu * WARPS + w) * LANES + sub) * 2u + 1u];
    }
    let to = ((id.x * params.rows + row) * HEADS + kvHead * GROUP + $hu) * (HEAD_DIM + 2u);
    if (lane == 0u) {
      partials[to] = maximum$h;
      partials[to + 1u] = total;
    }
    for (var c = 0u; c < 4u; c++) {
      if (sub * 8u + c < HEAD_DIM) { partials[to + 2u + sub * 8u + c] = a[c]; }
      if (sub * 8u + 4u + c < HEAD_DIM) { partials[to + 2u + sub * 8u + 4u + c] = b[c]; }
    }
  }
  // end $h
}
