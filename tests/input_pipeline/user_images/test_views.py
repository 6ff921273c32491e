"""Words of headers and file names that name a view or a part of the body, in several languages."""

import pytest

from input_pipeline.user_images.views import find_view, shows_chest


@pytest.mark.parametrize("text,view", [
    ("PA", "frontal"), ("AP", "frontal"), ("pa ", "frontal"), ("AP ERECT", "frontal"), ("AP SUPINE", "frontal"),
    ("CHEST AP PORTABLE", "frontal"), ("Thorax p.a.", "frontal"), ("A-P", "frontal"), ("postero-anterior", "frontal"),
    ("antero-posterior", "frontal"), ("POSTERO ANTERIOR", "frontal"), ("Thorax frontale", "frontal"),
    ("poumons (face)", "frontal"), ("胸部正位", "frontal"), ("正位", "frontal"), ("AP AXIAL", "frontal"),
    ("W033 PA_CHEST", "frontal"), ("胸部側面", "lateral"),
    ("LAT", "lateral"), ("LL", "lateral"), ("RL", "lateral"), ("LATERAL", "lateral"), ("left lateral", "lateral"),
    ("XTABLE LATERAL", "lateral"), ("L LAT", "lateral"), ("LLAT", "lateral"), ("Thorax seitlich", "lateral"),
    ("latero-lateral", "lateral"), ("profil gauche", "lateral"), ("perfil", "lateral"), ("側面", "lateral"),
    ("LAO", "other"), ("PA OBLIQUE", "other"), ("AP LLD", "other"), ("left lateral decubitus", "other"),
    ("SWIMMERS", "other"), ("", ""), ("PA AND LATERAL", ""), ("Doe^Jane", ""), ("1", ""), ("CHEST", ""),
    ("PATIENT", "")])
def test_views_of_headers(text, view):
  assert find_view(text)[0] == view


@pytest.mark.parametrize("text,is_pa", [("PA", True), ("Thorax p.a.", True), ("postero-anterior", True), ("AP", False),
                                        ("frontal", False), ("LL", False), ("antero-posterior", False)])
def test_postero_anterior(text, is_pa):
  assert find_view(text)[1] == is_pa


@pytest.mark.parametrize("name,view", [
    ("smith_pa", "frontal"), ("Chest-LAT", "lateral"), ("apple", ""), ("rao_1", ""), ("rao_pa", "frontal"),
    ("yan_2", ""), ("profile_3", ""), ("thorax_profil", "lateral"), ("case7_oblique", "other")])
def test_views_of_file_names(name, view):
  assert find_view(name, is_file_name=True)[0] == view


@pytest.mark.parametrize("text,expected", [
    ("", True), ("CHEST", True), ("CHEST PA", True), ("PORT CHEST", True), ("PORTABLE_CHEST", True), ("chest ", True),
    ("THORAX", True), ("Tórax", True), ("TÓRAX".encode().decode("latin-1"), True), ("TORACE", True), ("POITRINE", True),
    ("Lungs", True), ("LUNGE", True), ("Brustkorb", True), ("RIB", True), ("RIBS", True), ("HEART", True),
    ("胸部", True), ("Грудная клетка", True), ("klatka piersiowa", True), ("CHESTABDOMEN", True), ("GÖĞÜS", True),
    ("-", True), ("KNEE", False), ("ABDOMEN", False), ("HAND", False), ("SKULL", False), ("TRIBE", False),
    ("KNEE Doe", False)])
def test_parts_of_the_body(text, expected):
  assert shows_chest(text) == expected
