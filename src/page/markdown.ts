import { lexer, type MarkedToken, type Token, type Tokens } from 'marked';
import { h } from './dom.ts';

/**
 * An answer's Markdown as elements. The lexer tells what is what, elements are made here: text stays text, so that no answer can bring
 * markup, scripts or pictures of its own (HTML in it is shown as it was written). Links lead to http and https alone.
 */
export const renderMarkdown = (text: string): Node[] => blocks(lexer(text, { gfm: true, breaks: true }));

const blocks = (tokens: readonly Token[]): Node[] => tokens.flatMap((token) => block(token as MarkedToken));

function block(token: MarkedToken): Node[] {
  switch (token.type) {
    case 'paragraph':
      return [h('p', {}, ...inline(token.tokens))];
    case 'heading':
      // Below the page's own headings, which end with the speaker's.
      return [h(`h${Math.min(6, token.depth + 3)}` as 'h4', {}, ...inline(token.tokens))];
    case 'code':
      return [h('pre', { tabindex: 0 }, h('code', {}, token.text))];
    case 'blockquote':
      return [h('blockquote', {}, ...blocks(token.tokens))];
    case 'list':
      return [list(token)];
    case 'table':
      return [table(token)];
    case 'hr':
      return [h('hr')];
    case 'space':
    case 'def':
      return [];
    case 'text':
      return token.tokens ? inline(token.tokens) : [new Text(token.text)];
    default:
      return inline([token]);
  }
}

function list(token: Tokens.List): HTMLElement {
  const items = token.items.map((item) => h('li', {}, ...blocks(item.tokens)));
  return token.ordered ? h('ol', { start: Number(token.start) || 1 }, ...items) : h('ul', {}, ...items);
}

function table({ header, rows }: Tokens.Table): HTMLElement {
  const row = (cells: readonly Tokens.TableCell[], tag: 'th' | 'td') =>
    h('tr', {}, ...cells.map((cell) => h(tag, {}, ...inline(cell.tokens))));
  return h(
    'div',
    { class: 'wide-content', tabindex: 0, role: 'region', 'aria-label': 'Table' },
    h(
      'table',
      {},
      h('thead', {}, row(header, 'th')),
      h('tbody', {}, ...rows.map((cells) => row(cells, 'td'))),
    ),
  );
}

function inline(tokens: readonly Token[]): Node[] {
  return (tokens as readonly MarkedToken[]).flatMap((token): Node[] => {
    switch (token.type) {
      case 'strong':
      case 'em':
      case 'del':
        return [h(token.type, {}, ...inline(token.tokens))];
      case 'codespan':
        return [h('code', {}, token.text)];
      case 'br':
        return [h('br')];
      case 'link':
        return [link(token.href, inline(token.tokens))];
      case 'image':
        // Never fetched: a picture's address could carry what was said to somebody else.
        return [link(token.href, [new Text(token.text || token.href)])];
      case 'checkbox':
        return [new Text(token.checked ? '☑ ' : '☐ ')];
      case 'text':
        return token.tokens ? inline(token.tokens) : [new Text(token.text)];
      case 'escape':
        return [new Text(token.text)];
      default:
        return [new Text(token.raw)];
    }
  });
}

function link(href: string, children: Node[]): HTMLElement {
  return /^https?:\/\//i.test(href)
    ? h('a', { href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...children)
    : h('span', {}, ...children);
}
