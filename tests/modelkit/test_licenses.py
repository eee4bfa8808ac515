"""Licences recognised by their phrases."""

from pathlib import Path

import pytest

from kitfs.modelkit.licenses import LICENSE_SIZE_MAX, find_license

MIT = """\
MIT License

Copyright (c) 2024 A. N. Other

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
BSD_2 = """\
Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:
1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following
   disclaimer.
2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
   disclaimer in the documentation and/or other materials provided with the distribution.
{clause}
THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""
BSD_3 = BSD_2.format(
    clause="3. Neither the name of the copyright holder nor the names of its contributors may be used to\n"
    "   endorse or promote products derived from this software without specific prior written permission.\n"
)
APACHE_NOTICE = """\
Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 . Unless required by
applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
governing permissions and limitations under the License.
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (MIT, "MIT"),
        (MIT.replace("\n", "\r\n\r\n# "), "MIT"),
        (BSD_2.format(clause=""), "BSD-2-Clause"),
        (BSD_3, "BSD-3-Clause"),
        (APACHE_NOTICE, "Apache-2.0"),
        (APACHE_NOTICE + APACHE_NOTICE, "Apache-2.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/", "CC-BY-NC-SA-4.0"),
        ("Weights: CC BY 4.0 <https://creativecommons.org/licenses/by/4.0/legalcode>", "CC-BY-4.0"),
    ],
)
def test_known_licence(text: str, name: str):
    """Line breaks, comment signs and names do not matter; a clause more is another licence."""
    assert find_license(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "All rights reserved.",
        MIT + BSD_3,
        MIT.replace("THE SOFTWARE IS", f"{'You shall be good and never be evil. ' * 4}THE SOFTWARE IS"),
        MIT[: len(MIT) // 2],
        APACHE_NOTICE + "Terms of our own apply as well. " * 400,
    ],
    ids=["empty", "unknown", "two", "changed", "cut", "much-beside"],
)
def test_no_licence_rather_than_a_wrong_one(text: str):
    """What is unknown, changed, cut short, double, or mostly something else has no name."""
    assert find_license(text) == ""


@pytest.mark.parametrize(
    ("file", "name"),
    [
        *((name, name) for name in ("Apache-2.0", "CC0-1.0", "LGPL-2.1", "MPL-2.0")),
        *((f"{name}-{version}", f"{name}-{version}.0") for name in ("GPL", "LGPL") for version in (3,)),
        ("GPL-2", "GPL-2.0"),
        ("BSD", "BSD-3-Clause"),
    ],
)
def test_full_texts_of_the_distribution(file: str, name: str):
    """The full texts that Debian ships have their names."""
    path = Path("/usr/share/common-licenses") / file
    if not path.exists():
        pytest.skip(f"{path} is absent")
    assert find_license(path.read_text()) == name


@pytest.mark.parametrize(
    "phrase",
    [
        "permission is hereby granted free of charge to any person obtaining a copy",
        "gnu general public license version 3 29 june 2007 terms and conditions",
        "https://creativecommons.org/licenses/by/4.0/",
        "a",
    ],
)
def test_a_phrase_over_and_over_is_no_licence(phrase: str):
    """A megabyte of a phrase is looked at in a moment, not in minutes, and has no name."""
    assert find_license(f"{phrase} " * (LICENSE_SIZE_MAX // len(phrase))) == ""
