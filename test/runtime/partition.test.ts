import { describe, expect, it } from 'vitest';
import { UnsupportedModelError } from '../../src/core/errors.ts';
import type { Graph, GraphNode } from '../../src/runtime/graph.ts';
import { claimAttentionOnly, claimDecoder, partition } from '../../src/runtime/partition.ts';
import { tinyDecoder } from '../helpers/tiny-decoder.ts';

const node = (op: string, inputs: string[], output: string, domain = ''): GraphNode => ({
  name: `make ${output}`,
  op,
  domain,
  inputs,
  outputs: [output],
  attributes: {},
});
const graphOf = (...nodes: GraphNode[]): Graph => ({
  inputs: ['in'],
  outputs: [nodes.at(-1)!.outputs[0]!],
  nodes,
});
const claimed =
  (...ops: string[]) =>
  (n: GraphNode) =>
    ops.includes(n.op);

describe('partition', () => {
  it('gives a llama-family decoder to the kernels in one stage', () => {
    const { graph, weights } = tinyDecoder();
    const stages = partition(graph, claimDecoder);
    expect(stages.map((s) => [s.kind, s.nodes.length])).toEqual([['kernels', graph.nodes.length]]);
    expect(stages[0]).toMatchObject({ inputs: ['input_ids'], outputs: ['logits'] });
    expect([...stages[0]!.weights].sort()).toEqual(Object.keys(weights).sort());
  });

  it('leaves everything but attention to onnxruntime when attention alone is claimed', () => {
    const stages = partition(tinyDecoder().graph, claimAttentionOnly);
    expect(stages.map((s) => s.kind)).toEqual(['ort', 'kernels', 'ort', 'kernels', 'ort']);
    expect(stages[0]).toMatchObject({
      inputs: ['input_ids'],
      outputs: ['x', 'layers.0.q', 'layers.0.k', 'layers.0.v'],
      weights: ['embed_tokens', 'layers.0.input_norm', 'layers.0.wq', 'layers.0.wk', 'layers.0.wv'],
    });
    expect(stages[1]).toMatchObject({
      inputs: ['layers.0.q', 'layers.0.k', 'layers.0.v'],
      outputs: ['layers.0.a'],
      weights: [],
    });
    expect(stages[2]!.inputs.toSorted()).toEqual(['layers.0.a', 'x']);
    expect(stages[4]!.outputs).toEqual(['logits']);
  });

  it('claims attention even when the claims refuse it', () => {
    const stages = partition(tinyDecoder().graph, () => false);
    expect(stages.filter((s) => s.kind === 'kernels').flatMap((s) => s.nodes.map((n) => n.op))).toEqual([
      'GroupQueryAttention',
      'GroupQueryAttention',
    ]);
  });

  it('makes runs maximal: independent nodes of one kind do not cut the other kind in pieces', () => {
    const graph = graphOf(
      node('Tanh', ['in'], 'a'),
      node('Sigmoid', ['in'], 'b'),
      node('Erf', ['a'], 'c'),
      node('Sigmoid', ['b'], 'd'),
      node('Add', ['c', 'd'], 'e'),
    );
    expect(
      partition(graph, claimed('Sigmoid', 'Add')).map((s) => [s.kind, s.nodes.map((n) => n.op)]),
    ).toEqual([
      ['ort', ['Tanh', 'Erf']],
      ['kernels', ['Sigmoid', 'Sigmoid', 'Add']],
    ]);
  });

  it('orders nodes topologically, whatever order they are written in', () => {
    const graph: Graph = {
      inputs: ['in'],
      outputs: ['c'],
      nodes: [node('Sigmoid', ['b'], 'c'), node('Sigmoid', ['a'], 'b'), node('Sigmoid', ['in'], 'a')],
    };
    expect(partition(graph, claimDecoder)[0]!.nodes.map((n) => n.outputs[0])).toEqual(['a', 'b', 'c']);
  });

  it('claims an Add between values, and leaves an Add of a stored bias to onnxruntime', () => {
    const graph = graphOf(node('Sigmoid', ['in'], 'a'), node('Add', ['a', 'bias'], 'b'));
    expect(partition(graph, claimDecoder).map((s) => [s.kind, s.weights])).toEqual([
      ['kernels', []],
      ['ort', ['bias']],
    ]);
  });

  it.each([
    [
      'an operator that nobody has',
      graphOf(node('Einsum', ['in'], 'a')),
      /make a has operator Einsum, which neither/,
    ],
    [
      'a known operator of a foreign domain',
      graphOf(node('Sigmoid', ['in'], 'a', 'my.own')),
      /my\.own::Sigmoid/,
    ],
    ['a cycle', graphOf(node('Add', ['in', 'b'], 'a'), node('Sigmoid', ['a'], 'b')), /make a .* cycle/],
    ['a value made twice', graphOf(node('Sigmoid', ['in'], 'a'), node('Tanh', ['in'], 'a')), /produces a/],
    [
      'an output that nobody makes',
      { ...graphOf(node('Sigmoid', ['in'], 'a')), outputs: ['z'] },
      /no node produces .* z/,
    ],
  ])('refuses %s by name', (_, graph, message) => {
    expect(() => partition(graph, claimDecoder)).toThrow(UnsupportedModelError);
    expect(() => partition(graph, claimDecoder)).toThrow(message);
  });
});
