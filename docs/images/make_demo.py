"""Makes docs/images/demo.png, the README's picture, of what ``make demo`` left behind: its first image of attention."""

from PIL import Image

ROWS = 0.68  # part of the picture's height that its first two rows take, both objects of the first image

picture = Image.open("output/demo/attention.png")
picture.crop((0, 0, picture.width, round(ROWS * picture.height))).save("docs/images/demo.png", optimize=True)
