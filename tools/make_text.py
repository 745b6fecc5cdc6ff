"""Makes `text.xz`, `text.json`, `tokenizer.json` and `CREDITS-text.md` from articles of the Wikipedia.

    python tools/make_text.py DUMP.bz2 [--check]

DUMP.bz2 is `enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2`, which gensim 4.4.0 keeps
among its test data (`pip download --no-deps gensim==4.4.0`, unzip; nothing has to be installed). The package
never needs this script nor the dump: it is the record of where the words come from. The SHA-256 of the dump
is compared with the one below.

Markup, tables, references and lists are taken away, paragraphs of at least 200 characters are kept, at most
30,000 characters of an article; every eighth article is for testing. A WordPiece of 3,000 pieces, in small
letters, is trained on the other ones.
"""
from __future__ import annotations

import argparse
import bz2
import hashlib
import html
import json
import lzma
import re
import sys
from pathlib import Path

FILES = Path(__file__).resolve().parents[1] / 'maskedlab' / 'data' / 'files'
DUMP = 'a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d'
PIECES, LEAST, MOST = 3000, 200, 30_000
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']


def inner(text: str, opening: str, closing: str) -> str:
    "Take away what stands between two marks, which may be nested."
    out, depth, last = [], 0, 0
    for m in re.finditer(f'{re.escape(opening)}|{re.escape(closing)}', text):
        if m[0] == opening:
            if depth == 0:
                out.append(text[last:m.start()])
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                last = m.end()
    return ''.join(out) + (text[last:] if depth == 0 else '')


def plain(text: str) -> str:
    "Wikitext as prose."
    text = html.unescape(html.unescape(text))
    text = re.sub(r'<!--.*?-->', '', text, flags=re.S)
    text = re.sub(r'<ref[^>]*/>', '', text)
    text = re.sub(r'<(ref|math|gallery|code|pre|source|timeline|imagemap)\b.*?</\1>', '', text, flags=re.S)
    text = re.sub(r'\{\{\s*(?:spaced\s+|sp)?(?:n|m|e)?(?:dash|snd|--)\s*\}\}', '-', text, flags=re.I)
    text = re.sub(r'\{\{\s*(?:convert|cvt)\s*\|\s*([^|{}]+)\|\s*([^|{}]+)(?:\|[^{}]*)?\}\}', r'\1 \2', text,
                  flags=re.I)
    text = inner(inner(text, '{{', '}}'), '{|', '|}')
    text = re.sub(r'<[^>]+>', '', text)
    for _ in range(3):
        text = re.sub(r'\[\[(?:File|Image|Category|[a-z-]{2,12}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]', '', text)
    text = re.sub(r'\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]', r'\1', text)
    text = re.sub(r'\[https?://\S+\s*([^\]]*)\]', r'\1', text)
    text = text.replace("'''", '').replace("''", '')
    return text.translate(str.maketrans('\u2018\u2019\u201c\u201d\u2013\u2014\u00a0',
                                        '\'\'""-- ')).replace('\u2026', '...')


def paragraphs(text: str) -> list[str]:
    "The paragraphs of running text."
    lines = (re.sub(r'\(\s*[,;]?\s*\)', '', line).strip() for line in plain(text).splitlines())
    lines = (re.sub(r'\(\s*(?:[,;]\s*)+', '(', line) for line in lines)
    lines = (re.sub(r'\s+([,.;])', r'\1', re.sub(r'\s+', ' ', line)) for line in lines)
    odd = re.compile(r'[|{}\[\]=<>]|https?:|__')
    return [p for p in lines if len(p) >= LEAST and p[0] not in '*#:;!' and p[-1] in '.!?"'
            and not odd.search(p)]


def articles(dump: bytes) -> list[dict]:
    pages = re.findall(r'<page>(.*?)</page>', bz2.decompress(dump).decode('utf-8'), flags=re.S)
    out = []
    for page in pages:
        title, text = re.search(r'<title>(.*?)</title>',
                                page)[1], re.search(r'<text[^>]*>(.*?)</text>', page, re.S)
        revision = re.search(r'<revision>\s*<id>(\d+)</id>', page)
        if text is None or '#redirect' in text[1][:40].lower() or ':' in title: continue
        kept, size = [], 0
        for p in paragraphs(text[1]):
            if size + len(p) > MOST: break
            kept.append(p)
            size += len(p)
        if size > 2000:
            out.append(dict(title=html.unescape(title), revision=int(revision[1]), text=kept))
    for i, a in enumerate(out):
        a['split'] = 'test' if i % 8 == 7 else 'train'
    return out


def train_tokenizer(found: list[dict]):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    t = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=PIECES, special_tokens=SPECIAL, limit_alphabet=80,
                                        show_progress=False)
    t.train_from_iterator((p for a in found if a['split'] == 'train' for p in a['text']), trainer)
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]',
                                                     pair='[CLS] $A [SEP] $B:1 [SEP]:1',
                                                     special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    return t


def shared(a: dict, b: dict) -> float:
    "Ties between pairs of pieces fall by chance in the trainer, so two trainings agree in nearly all pieces."
    return len(set(a['model']['vocab']) & set(b['model']['vocab'])) / len(b['model']['vocab'])


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument('dump', type=Path)
    args.add_argument('--check', action='store_true', help='compare with the files that are there and write '
                                                           'nothing')
    args = args.parse_args()
    dump = args.dump.read_bytes()
    if hashlib.sha256(dump).hexdigest() != DUMP:
        sys.exit(f'{args.dump} is another dump: SHA-256 {hashlib.sha256(dump).hexdigest()}')
    found = articles(dump)
    text = '\n\n'.join('\n'.join(a['text']) for a in found)
    about = dict(source='English Wikipedia', licence='CC BY-SA 3.0', dump_sha256=DUMP,
                 command='python tools/make_text.py DUMP.bz2',
                 articles=[dict(title=a['title'], revision=a['revision'], split=a['split'],
                                paragraphs=len(a['text'])) for a in found])
    t = train_tokenizer(found)
    lines = '\n'.join(f"| {a['title']} | {a['split']} | https://en.wikipedia.org/?oldid={a['revision']} |"
                      for a in found)
    credits = f"""# Credits of the embedded text (`text.xz`, `tokenizer.json`)

Made by `tools/make_text.py`. Paragraphs of {len(found)} articles of the English Wikipedia, by its
contributors, under CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/); the link of each article
leads to the version used, and its history names the authors. Changed: markup, tables, references and lists
were taken away, short paragraphs left out, long articles shortened. This derived file and the word pieces
learned from it are under CC BY-SA 3.0 too. The articles came as test data of gensim 4.4.0.

| article | split | version |
|---|---|---|
{lines}
"""
    files = {'text.xz': lzma.compress(text.encode('utf-8'), preset=9 | lzma.PRESET_EXTREME),
             'text.json': json.dumps(about, indent=1).encode(),
             'tokenizer.json': t.to_str(pretty=False).encode(), 'CREDITS-text.md': credits.encode()}
    for name, content in files.items():
        path = FILES / name
        if not args.check:
            path.write_bytes(content)
            print(f'{name}: {len(content):,} bytes')
        elif name == 'tokenizer.json':
            print(name, f'{shared(json.loads(content), json.loads(path.read_bytes())):.1%} of its pieces '
                        'come again')
        else:
            print(name, 'as it is here' if path.read_bytes() == content else 'DIFFERS')
    print(f'{len(found)} articles, {sum(len(a["text"]) for a in found):,} paragraphs, {len(text):,} '
          'characters')


if __name__ == '__main__':
    main()
